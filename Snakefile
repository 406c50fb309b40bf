"""Distil a large pre-trained transducer teacher into a small Conformer student, from audio to a report of WERs.

Rules say when and where, `kdtrans` says how. Each phase is a target: snakemake prepare | teacher | targets | student |
decode | score | report; and so is each system of the configuration: snakemake baseline.
"""

from snakemake.utils import min_version

min_version("9.20")


configfile: "config.yaml"


container: "envs/kdtrans.sif"  # with --sdm apptainer only; envs/README.md says how it is built


include: "workflow/rules/common.smk"
include: "workflow/rules/data.smk"
include: "workflow/rules/lm.smk"
include: "workflow/rules/teacher.smk"
include: "workflow/rules/targets.smk"
include: "workflow/rules/student.smk"
include: "workflow/rules/decode.smk"
include: "workflow/rules/report.smk"


localrules:
    all,
    prepare,
    teacher,
    targets,
    student,
    decode,
    download,
    gate,
    score,
    score_testset,
    report,
    sweep,
    choose,


rule all:  # every phase by name: Snakemake does not remake a missing file whose successors exist unless it is asked for
    default_target: True
    input:
        rules.prepare.input,
        rules.teacher.input,
        rules.targets.input,
        rules.student.input,
        rules.decode.input,
        rules.score.input,
        rules.report.output,
