# docker build -t recmtl .                              for CPUs
# docker build -t recmtl --build-arg VARIANT=cuda .     for NVIDIA GPUs: the wheels bring CUDA, the host its driver
#
# Needs BuildKit, which Docker uses by default since version 23; before, set DOCKER_BUILDKIT=1.
# BASE_IMAGE is a Debian or Ubuntu with Python 3.10 to 3.12 and its venv. PIP_FLAGS are extra options for pip install.
# Where requirements/wheels exists (`make wheels`), pip takes everything from there and asks no index.
ARG BASE_IMAGE=python:3.11-slim
FROM ${BASE_IMAGE}

ENV PATH=/opt/venv/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
WORKDIR /opt/recmtl

# Files are mounted, not copied, so there are three layers: user, stack, recmtl. The stack changes seldom and is large.
RUN useradd --create-home --uid 1000 recmtl

ARG VARIANT=cpu
ARG PIP_FLAGS=
RUN --mount=type=bind,source=requirements,target=requirements \
    if [ -d requirements/wheels ]; then offline="--no-index --find-links requirements/wheels"; fi \
 && install="pip install --quiet --no-cache-dir --disable-pip-version-check ${PIP_FLAGS} ${offline:-}" \
 && python3 -m venv /opt/venv \
 && $install -r requirements/${VARIANT}.txt \
 && $install --no-deps -r requirements/nodeps.txt

# A few steps of training show that the install works. The CUDA build of fbgemm may not load where there is no driver, as
# in a build, so there only the versions are checked.
RUN --mount=type=bind,target=/src,rw \
    pip install --quiet --no-cache-dir --disable-pip-version-check --no-deps --no-build-isolation /src \
 && install -m 755 /src/torchx_specs/entrypoint.sh /usr/local/bin/recmtl-entrypoint \
 && cp -r /src/benchmarks . \
 && recmtl presets \
 && if [ "${VARIANT}" = cpu ]; then \
        recmtl synth merrec /tmp/check/raw --events 2000 \
     && recmtl prepare merrec /tmp/check/raw /tmp/check/data \
     && recmtl train mmoe --data /tmp/check/data --run /tmp/check/run --training.max_steps 2 --training.device cpu; \
    fi \
 && rm -rf /tmp/check /root/.cache /root/.config

USER recmtl
ENTRYPOINT ["recmtl-entrypoint"]
CMD ["--help"]
