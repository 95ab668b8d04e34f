# The server with the bundle of this repository inside. Small: no torch, but in the target `gpu`.
#
#   docker build -t shiftnas-serve . && docker run -p 8000:8000 shiftnas-serve
#   docker build -t shiftnas-serve:0.1.0-gpu --target gpu . && docker run --gpus all -p 8000:8000 \
#     -v engines:/engines shiftnas-serve:0.1.0-gpu          with TensorRT
#   docker build -t shiftnas-serve:0.1.0-ray --target ray .  for deploy/ray/rayservice.yaml
#   docker run -p 8000:8000 -v /my/bundle:/bundle:ro shiftnas-serve --bundle /bundle
#   docker run -p 9000:9000 -e SHIFTNAS_PORT=9000 shiftnas-serve
#
# Set the port in the environment: the health check reads SHIFTNAS_PORT and cannot see --port.
#
# Not built by this project's CI, which has no container engine. tests/test_foundations.py checks
# what can be read off this file and runs its selection of requirements; its pip commands and its
# entry point were run by hand in an empty environment.

FROM python:3.11-slim AS build
WORKDIR /app
RUN python -m venv /opt/venv
COPY pyproject.toml constraints.txt ./
# On Linux pyproject.toml asks for the GPU build of ONNX Runtime: it runs on a CPU too, but it is a
# wheel of 256 MB, and only one build may be installed. Here its line for other platforms, which
# asks for the CPU build, counts instead: the same list without the one line and the other's marker.
RUN python - > requirements.txt <<'EOF'
import tomllib
with open("pyproject.toml", "rb") as file:
    wanted = tomllib.load(file)["project"]["dependencies"]
for one in wanted:
    name, _, marker = one.partition(";")
    if not name.startswith("onnxruntime-gpu"):
        print(name.strip() if name.startswith("onnxruntime") else one)
EOF
RUN /opt/venv/bin/pip install --no-cache-dir -c constraints.txt -r requirements.txt

FROM python:3.11-slim AS serve
# As process 1, tini passes signals on, also while the server is still starting (the kernel ignores
# a SIGTERM that process 1 does not handle yet), and buries orphans.
RUN apt-get update \
 && apt-get install -y --no-install-recommends tini \
 && rm -rf /var/lib/apt/lists/*
RUN useradd --create-home --uid 10001 shiftnas
WORKDIR /app
COPY --from=build /opt/venv /opt/venv
COPY LICENSE ./
COPY models ./models
COPY shiftnas_serve ./shiftnas_serve
ENV PATH=/opt/venv/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
# From outside the container 127.0.0.1, the default, could not be reached.
ENV SHIFTNAS_HOST=0.0.0.0
# A number, so that Kubernetes can see that it is not root.
USER 10001
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=3s --start-period=15s CMD ["python", "-c", \
  "import os, urllib.request as ask; port = os.environ.get('SHIFTNAS_PORT', '8000'); \
   ask.urlopen(f'http://localhost:{port}/readyz', timeout=2)"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["tini", "--", "python", "-m", "shiftnas_serve"]

FROM serve AS gpu
COPY constraints.txt /tmp/
USER 0
# The tensorrt runtime keeps its buffers in torch.
RUN /opt/venv/bin/pip install --no-cache-dir -c /tmp/constraints.txt torch 'tensorrt-cu13>=10.14.1,<12' \
 && install -d -o 10001 /engines
USER 10001
ENV SHIFTNAS_RUNTIME=tensorrt SHIFTNAS_DEVICE=cuda SHIFTNAS_ENGINE_CACHE=/engines

FROM serve AS ray
COPY constraints.txt /tmp/
USER 0
RUN /opt/venv/bin/pip install --no-cache-dir -c /tmp/constraints.txt 'ray[serve]>=2.60,<3'
USER 10001
# KubeRay says what runs: `ray start` with what the cluster needs. It finds the code here.
ENV PYTHONPATH=/app RAY_USAGE_STATS_ENABLED=0
HEALTHCHECK NONE
ENTRYPOINT []

# The last one is what is built when no target is named.
FROM serve
