# The workflow with its whole environment, for x86_64 and aarch64 alike: see docs/containers.md.
#
#   docker build --tag scrna .                              for a machine with an NVIDIA GPU
#   docker build --tag scrna --build-arg PINS=cpu .         without RAPIDS
#   docker build --tag scrna --build-arg NOTEBOOK=yes .     with JupyterLab
#
# No container engine has built this file yet; envs/try_dockerfile.py executes its lines in a bare Debian 13, which
# has been done on x86_64 with PINS=cpu. envs/scrna.def has the same commands for Apptainer.

FROM debian:trixie-slim

# make, Python and pip are all that the set-up needs. Without libgomp1 numba works in one thread; tini passes
# Ctrl-C on to a run.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends ca-certificates libgomp1 make python3 python3-pip tini \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /workflow

# Which pins: gpu has RAPIDS from wheels (and runs on a CPU as well), cpu has none. `make run` goes by it too.
ARG PINS=gpu
ENV PINS=$PINS

# Before the code, so that changed code does not install the packages again.
COPY envs/setup envs/uv.txt envs/cpu.txt envs/gpu.txt envs/
RUN UV_NO_CACHE=1 envs/setup "$PINS"

COPY . .

ARG NOTEBOOK=
RUN if [ -n "$NOTEBOOK" ]; then UV_NO_CACHE=1 make jupyter; fi

# Any user may run it (--user) and write where a run writes, and nowhere else.
RUN useradd --uid 1000 --create-home scrna \
    && mkdir -p /data .snakemake benchmarks logs resources results \
    && chmod 777 /data /home/scrna . .snakemake benchmarks logs resources results

# HOME and USER are for users without an entry in passwd; the libraries of NVIDIA's driver come from the host.
ENV PATH=/workflow/.venv/bin:$PATH \
    HOME=/home/scrna \
    USER=scrna \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility

USER 1000
# /data is for your files; resources/ has what was downloaded, results/ what came out.
VOLUME ["/data", "/workflow/resources", "/workflow/results"]
EXPOSE 8888
ENTRYPOINT ["tini", "-g", "--"]
CMD ["make", "run"]
