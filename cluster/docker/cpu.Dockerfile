# syntax=docker/dockerfile:1
# docker build -f cluster/docker/cpu.Dockerfile -t ghcr.io/YOUR_ORG/sirt-ray:0.1.0-cpu .
FROM python:3.11.14-slim-bookworm

# g++ and ninja compile DeepSpeed's CPU kernels, where a job offloads; `ray up` copies files with
# rsync; KubeRay's probes ask with wget.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends ca-certificates g++ ninja-build rsync wget \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 1000 ray

ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
COPY constraints-cpu.txt /app/
RUN pip install --no-deps torch==2.13.0+cpu --index-url https://download.pytorch.org/whl/cpu \
    && pip install --no-deps --require-hashes -r /app/constraints-cpu.txt

COPY pyproject.toml README.md LICENSE /app/
COPY sirt_ray /app/sirt_ray
RUN pip install --no-deps --no-build-isolation /app
COPY jobs /app/jobs

# `ray up` reads the home folder out of the image's environment.
ENV HOME=/home/ray PYTHONUNBUFFERED=1
WORKDIR /home/ray
USER 1000
CMD ["sirt", "--help"]
