# GPU image: that of `make image`, TensorRT, and torch, in which the tensorrt runtime keeps its buffers.
#
#   make image && docker build -t shiftnas-serve:0.1.0-gpu -f deploy/gpu.Dockerfile .
#   docker run --gpus all -p 8000:8000 -v engines:/engines shiftnas-serve:0.1.0-gpu
#
# Neither built nor run by this project's CI, which has no container engine and no GPU.

FROM shiftnas-serve
COPY constraints.txt /tmp/
USER 0
RUN /opt/venv/bin/pip install --no-cache-dir -c /tmp/constraints.txt torch 'tensorrt-cu13>=10.14.1,<11' \
 && install -d -o 10001 /engines
USER 10001
ENV SHIFTNAS_RUNTIME=tensorrt SHIFTNAS_DEVICE=cuda SHIFTNAS_ENGINE_CACHE=/engines
