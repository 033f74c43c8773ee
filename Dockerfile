# docker build -t recmtl .                                    for CPUs
# docker build -t recmtl --build-arg VARIANT=cuda .           for NVIDIA GPUs: the wheels bring CUDA, the host its driver
# BASE_IMAGE needs Python 3.10 to 3.12 with venv. PIP_FLAGS are extra options for pip install.
ARG BASE_IMAGE=python:3.11-slim
FROM ${BASE_IMAGE}

ARG VARIANT=cpu
ARG PIP_FLAGS=
# Nothing but /tmp and the mounted folders need be writable.
ENV PATH=/opt/venv/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 MPLCONFIGDIR=/tmp/matplotlib

# The stack first: it changes seldom and is large.
COPY requirements /opt/recmtl/requirements
RUN python3 -m venv /opt/venv \
 && pip install --no-cache-dir ${PIP_FLAGS} -r /opt/recmtl/requirements/${VARIANT}.txt \
 && pip install --no-cache-dir ${PIP_FLAGS} --no-deps -r /opt/recmtl/requirements/nodeps.txt

COPY . /opt/recmtl
RUN pip install --no-cache-dir --no-deps --no-build-isolation /opt/recmtl \
 && install -m 755 /opt/recmtl/torchx_specs/entrypoint.sh /usr/local/bin/recmtl-entrypoint \
 && useradd --create-home --uid 1000 recmtl

# The GPU build of fbgemm may not load where there is no driver, as in a build; its version is checked all the same.
RUN recmtl presets && if [ "${VARIANT}" = cpu ]; then python -c "import torchrec"; fi

USER recmtl
WORKDIR /home/recmtl
ENTRYPOINT ["recmtl-entrypoint"]
CMD ["--help"]
