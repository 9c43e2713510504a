# Headless evaluation: policies in simulators, without a screen. From a clone:
#
#     docker build -t saqrl .
#     docker run --rm -v "$PWD/runs:/runs" saqrl evaluate /runs/cube --episodes 50
#
# Never built: there was no Docker where it was written. Of its steps the first (apt-get) was run in a bare Debian 12; the
# installation was not, and CI's differs from it (editable, extras `all` and `test`, without minari and robosuite).
FROM python:3.11-slim-bookworm

# saqrl draws with EGL where a GPU is there (`docker run --gpus all -e NVIDIA_DRIVER_CAPABILITIES=all`), else with OSMesa.
RUN apt-get update \
    && apt-get install -y --no-install-recommends libosmesa6 libegl1 libgl1 libglib2.0-0 \
    && rm -rf /var/lib/apt/lists/*
ENV PIP_NO_CACHE_DIR=1

WORKDIR /saqrl
COPY pyproject.toml README.md LICENSE CHANGELOG.md constraints.txt ./
COPY saqrl saqrl
RUN pip install -c constraints.txt ".[all,minari,robosuite]" \
    && pip install -c constraints.txt --no-deps robosuite

# Nothing in the container needs root. The compiled programs of JAX are kept in the home.
RUN useradd --create-home --uid 1000 saqrl && mkdir /runs && chown saqrl /runs
USER saqrl
WORKDIR /runs
ENTRYPOINT ["saqrl"]
CMD ["--help"]
