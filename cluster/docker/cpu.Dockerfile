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
COPY constraints-cpu.txt /opt/sirt/
RUN pip install --no-deps torch==2.13.0+cpu --index-url https://download.pytorch.org/whl/cpu \
    && pip install --no-deps -r /opt/sirt/constraints-cpu.txt

COPY pyproject.toml README.md LICENSE /opt/sirt/
COPY sirt_ray /opt/sirt/sirt_ray
RUN pip install --no-deps --no-build-isolation /opt/sirt
COPY jobs /opt/sirt/jobs

# `ray up` reads the home folder out of the image's environment.
ENV HOME=/home/ray PYTHONUNBUFFERED=1
WORKDIR /home/ray
USER 1000
CMD ["sirt", "--help"]
