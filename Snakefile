"""Single-cell RNA-seq from a count matrix to clusters, markers, embeddings and a trajectory.

On one NVIDIA GPU with rapids-singlecell, or on the CPU with scanpy, from the same rules.
"""

from snakemake.utils import min_version

min_version("9.19")


include: "rules/config_files.smk"


configfile: f"{HOME}/config/config.yaml"


include: "rules/common.smk"
include: "rules/ingest.smk"
include: "rules/samples.smk"
include: "rules/preprocess.smk"
include: "rules/integrate.smk"
include: "rules/embed.smk"
include: "rules/cluster.smk"
include: "rules/markers.smk"
include: "rules/trajectory.smk"
include: "rules/report.smk"


refusing(session.check_records)


rule all:
    default_target: True
    input:
        targets.everything,
    message:
        "Everything is in results/"


onstart:
    refusing(session.begin)


onsuccess:
    session.end()


onerror:
    session.end(log)
