# syntax=docker/dockerfile:1
# docker build -f cluster/docker/gpu.Dockerfile -t ghcr.io/YOUR_ORG/sirt-ray:0.1.0 .
#
# With the compiler of CUDA: FlashInfer, which vLLM asks for some kernels, makes them when they are
# first used.
FROM nvidia/cuda:13.0.1-devel-ubuntu24.04

RUN apt-get update \
    && apt-get install --yes --no-install-recommends \
        ca-certificates g++ ninja-build python3.12-dev python3.12-venv rsync wget \
    && rm -rf /var/lib/apt/lists/* \
    && userdel --remove ubuntu \
    && useradd --create-home --uid 1000 --shell /bin/bash ray \
    && python3.12 -m venv /venv \
    # `ray up` starts login shells, which set the path anew.
    && echo 'export PATH=/venv/bin:$PATH' > /etc/profile.d/venv.sh

ENV PATH=/venv/bin:$PATH PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
# CUDA's vLLM and torch, and boto3 and Google's client, which start nodes for `ray up`.
COPY constraints-gpu.txt /app/
RUN pip install --no-deps --require-hashes -r /app/constraints-gpu.txt

COPY pyproject.toml README.md LICENSE /app/
COPY sirt_ray /app/sirt_ray
RUN pip install --no-deps --no-build-isolation /app
COPY jobs /app/jobs

# `ray up` reads the home folder out of the image's environment.
ENV HOME=/home/ray PYTHONUNBUFFERED=1
WORKDIR /home/ray
USER 1000
CMD ["sirt", "--help"]
