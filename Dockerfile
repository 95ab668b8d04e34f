# CPU image of the server with the bundle of this repository inside. Small: no torch.
#
#   docker build -t shiftnas-serve . && docker run -p 8000:8000 shiftnas-serve
#
# Not built by this project's CI, which has no container engine; tests/test_foundations.py checks
# what can be read off this file, and its pip commands were run by hand in an empty environment.

FROM python:3.11-slim AS build
WORKDIR /app
RUN python -m venv /opt/venv
COPY pyproject.toml constraints.txt LICENSE ./
# pyproject.toml names the GPU build of ONNX Runtime on Linux (one build only may be installed, and
# that one also runs on a CPU), but it is 256 MB: here everything else is installed from the same
# list, and the CPU build in its place.
RUN python - > requirements.txt <<'EOF'
import tomllib
for one in tomllib.load(open("pyproject.toml", "rb"))["project"]["dependencies"]:
    if not one.startswith("onnxruntime"):
        print(one)
print("onnxruntime>=1.31,<2")
EOF
RUN sed '/^onnxruntime/d' constraints.txt > constraints.cpu.txt \
 && /opt/venv/bin/pip install --no-cache-dir -c constraints.cpu.txt -r requirements.txt

FROM python:3.11-slim
RUN useradd --create-home --uid 10001 shiftnas
WORKDIR /app
COPY --from=build /opt/venv /opt/venv
COPY models ./models
COPY shiftnas_serve ./shiftnas_serve
ENV PATH=/opt/venv/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
USER shiftnas
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=3s --start-period=15s CMD ["python", "-c", \
  "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/readyz', timeout=2)"]
STOPSIGNAL SIGTERM
# The server handles SIGTERM and SIGINT itself, also as process 1.
ENTRYPOINT ["python", "-m", "shiftnas_serve", "--host", "0.0.0.0"]
