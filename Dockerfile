# clipguard as a container: `docker build -t clipguard .` for CPUs; for CUDA add
# `--build-arg BASE=pytorch/pytorch:2.7.1-cuda12.8-cudnn9-runtime`, whose own PyTorch is used. docs/install.md says more.
ARG BASE=python:3.12-slim
# hadolint ignore=DL3006
FROM ${BASE}

# Where PyTorch comes from if the base has none: the builds for CPUs, a tenth of those for CUDA on PyPI.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu

ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PYTHONDONTWRITEBYTECODE=1

RUN python3 -m venv --system-site-packages /opt/clipguard \
    && /opt/clipguard/bin/python -m pip install "torch>=2.4" "torchvision>=0.19" --extra-index-url "$TORCH_INDEX"

COPY pyproject.toml README.md LICENSE NOTICE /src/
COPY clipguard /src/clipguard/
RUN /opt/clipguard/bin/python -m pip install /src && /opt/clipguard/bin/clipguard --version

# Results go to /results; what is downloaded, to /cache. Any user may write there, so `docker run --user` works, too.
RUN useradd --system --uid 10001 --no-create-home --home-dir /cache clipguard \
    && mkdir -p /results /cache \
    && chmod 1777 /results /cache

ENV PATH=/opt/clipguard/bin:$PATH HOME=/cache XDG_CACHE_HOME=/cache
USER 10001
WORKDIR /results
ENTRYPOINT ["clipguard"]
CMD ["--help"]
