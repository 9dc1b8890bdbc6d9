# The program in a container, without weights and without data. It runs as a user without rights.
#
#   docker build -t monai-diffae .
#   docker build -t monai-diffae:cuda --build-arg BASE=pytorch/pytorch:2.8.0-cuda12.8-cudnn9-runtime .
#   docker run --rm -v "$PWD:/data" monai-diffae embed --bundle my_bundle --cohort scans.csv --out results
#   docker run --rm -v "$PWD:/data" --gpus all --entrypoint torchrun monai-diffae:cuda --standalone --nproc_per_node=2 ...

ARG BASE=python:3.11-slim

FROM python:3.11-slim AS wheel
COPY pyproject.toml README.md LICENSE /src/
COPY monai_diffae /src/monai_diffae
COPY bundles /src/bundles
COPY configs /src/configs
RUN python -m pip wheel --no-cache-dir --no-deps --wheel-dir /dist /src

FROM ${BASE}
# the address of an index with PyTorch for CPUs only makes the image smaller: --build-arg TORCH_INDEX=...
ARG TORCH_INDEX=
# a base with CUDA brings its own torch, which this environment uses
RUN python -m venv --system-site-packages /opt/venv
ENV PATH=/opt/venv/bin:$PATH PYTHONUNBUFFERED=1
RUN python -c "import torch" || python -m pip install --no-cache-dir ${TORCH_INDEX:+--index-url ${TORCH_INDEX}} "torch>=2.8"
COPY --from=wheel /dist /dist
RUN python -m pip install --no-cache-dir /dist/*.whl
RUN useradd --create-home --uid 1000 diffae
USER diffae
WORKDIR /data
ENTRYPOINT ["monai-diffae"]
CMD ["--help"]
