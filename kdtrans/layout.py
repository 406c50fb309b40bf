"""Every artifact of a configuration: where it lies, which stage makes it, with which settings, and what from.

The workflow's rules take their paths from here; a test holds that what they make of a configuration, and by which rule,
is what `Layout.artifacts` lists.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain, product
from pathlib import Path
from typing import Any

from kdtrans.config import Config, LmConfig, Run, SearchConfig, training_identity

# Rules that are not called as their stage: those names are a phase's.
RULES = {"prepare": "prepare_corpus", "decode": "decode_testset", "score": "score_testset"}


@dataclass(frozen=True)
class Artifact:
    """What one job makes."""

    phase: str
    stage: str  # `kdtrans STAGE`
    path: str  # of its main file, the last one written, beside which the run record lies
    settings: dict[str, Any]  # what the stage records as `config`
    inputs: tuple[str, ...]  # files that it is made from, whose hashes the run record has
    others: tuple[str, ...] = ()  # files that the rule declares besides
    shards: tuple[str, ...] = ()  # files that it does not declare, for there are thousands
    dated: tuple[str, ...] = ()  # further files that it is made from, whose hashes it has not
    checkpoints: str | None = None  # a trainer's folder
    series: str = ""  # what it is one of, as a pattern; empty: it is alone

    @property
    def files(self) -> tuple[str, ...]:
        """All files, the main one first."""
        return (self.path, *self.others, *self.shards)

    @property
    def rule(self) -> str:
        """The name of the workflow's rule."""
        return RULES.get(self.stage, self.stage.replace("-", "_"))

    def deciding(self, settings: dict[str, Any]) -> dict[str, Any]:
        """Those of its settings that change what is made."""
        return training_identity(settings) if self.checkpoints else settings


class Layout:
    """The paths of a configuration's files, as strings, and all its artifacts."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.results = str(Path(config.results))
        # A run is one training of a student: a system, one of its seeds, or one point of a sweep.
        self.runs, self.sweep_runs = config.runs(), config.sweep_runs()
        self.students: dict[str, Run] = self.runs | self.sweep_runs
        self.target_sets = {name: config.target_set(name) for name in config.target_sets}
        self.test_sets = ["dev", *config.corpus.test]
        self.searches = config.decode.searches
        corpus, root = config.corpus, self.results
        self.makes_corpus = corpus.name == "synth" and not corpus.root
        self.downloads_corpus = corpus.name == "librispeech" and not corpus.root
        self.corpus_root = corpus.root or f"{root}/corpus"
        tests = [part for parts in corpus.test.values() for part in parts]
        self.corpus_parts = sorted({*corpus.labelled, *corpus.unlabelled, *corpus.dev, *tests})
        self.corpus_text = [f"{root}/corpus/lm.txt"] if self.makes_corpus else []
        self.corpus_sums, self.downloaded = f"{root}/corpus/SHA256SUMS", f"{root}/corpus/.downloaded"
        self.prepared_summary = f"{root}/data/prepared/summary.json"
        self.unlabelled_text = f"{root}/data/prepared/unlabelled_text.jsonl"
        self.tokenizer = f"{root}/tokenizer/tokenizer.model"
        self.data_summary = f"{root}/data/summary.json"
        self.dev_cuts = self.cuts_of("dev")
        self.lms = {"ngram": f"{root}/lm/lm.arpa", "lstm": f"{root}/lm/lstm.pt"}
        self.source_lm = f"{root}/lm/source.arpa"
        # An n-gram by the name of its file: `source` is of the transcripts alone, for density_ratio.
        self.ngrams = {"lm": config.lm, "source": LmConfig(order=config.lm.order)}
        # Teachers by their folders: the one that all runs are compared with, and further ones, which make targets only.
        self.teachers = {"teacher": config.teacher}
        self.teachers |= {f"teachers/{name}": config.further_teacher(name) for name in config.teachers}
        self.teacher, self.gate = self.teacher_in("teacher"), self.gate_in("teacher")
        self.report, self.choice = f"{root}/report/index.html", f"{root}/report/sweep.json"
        # The manifest shards of train. Commands are given the folder, for thousands of paths do not fit on a command
        # line; rules depend on data/summary.json, which holds one hash of them all: as outputs of `check` and inputs of
        # everything else, they would make the time to plan grow with their square.
        self.train = f"{root}/data/train"
        self.shards = [f"{number:05d}" for number in range(corpus.num_shards)]
        self.train_shards = tuple(f"{self.train}/cuts.{shard}.jsonl.gz" for shard in self.shards)

    # ----------------------------------------------------------------------------------------------------------- paths
    def cuts_of(self, testset: str) -> str:
        """The manifest of dev or a test set."""
        return f"{self.results}/data/{testset}/cuts.00000.jsonl.gz"

    def prepared(self, split: str) -> str:
        """The manifest of a split as the corpus has it."""
        return f"{self.results}/data/prepared/{split}.jsonl.gz"

    def model_of(self, run: str) -> str:
        """The model of a run; the teacher's is one."""
        return self.teacher if run == "teacher" else f"{self.results}/systems/{run}/model.pt"

    def teacher_in(self, folder: str) -> str:
        """The model of one of the configuration's teachers."""
        return f"{self.results}/{folder}/model.pt"

    def gate_in(self, folder: str) -> str:
        """What says that one of the configuration's teachers may teach."""
        return f"{self.results}/{folder}/gate.json"

    def checkpoints_of(self, run: str) -> str:
        """The folder of checkpoints beside a run's model."""
        return f"{Path(self.model_of(run)).parent}/checkpoints"

    def shards_of(self, targetset: str) -> list[str]:
        """The target shards of a set."""
        return [self.shard(targetset, shard) for shard in self.shards]

    def shard(self, targetset: str, shard: str) -> str:
        """One target shard of a set."""
        return f"{self.results}/targets/{targetset}/train/part-{shard}.parquet"

    def index_of(self, targetset: str) -> str:
        """The index of a target set's shards, written when they have been checked; index.arrow lies beside it."""
        return f"{self.results}/targets/{targetset}/train/index.json"

    def teachers_of(self, targetset: str) -> list[str]:
        """The models that make a target set: those of the configuration's teachers, or files of another workflow."""
        folders = {"teacher": "teacher"} | {name: f"teachers/{name}" for name in self.config.teachers}
        named = self.target_sets[targetset].teachers
        return [self.teacher_in(folders[name]) if name in folders else name for name in named]

    def gates_of(self, targetset: str) -> list[str]:
        """What says that those of a target set's teachers that are the configuration's may teach."""
        gates = {self.teacher_in(folder): self.gate_in(folder) for folder in self.teachers}
        return [gates[model] for model in self.teachers_of(targetset) if model in gates]

    def read_teachers(self, runs: Mapping[str, Run]) -> list[str]:
        """The folders of the first teacher, and of those whose target sets some runs read."""
        read = {self.teacher, *chain.from_iterable(map(self.teachers_of, self.target_sets_of(runs)))}
        return [folder for folder in self.teachers if self.teacher_in(folder) in read]

    def lm_of(self, search: SearchConfig) -> list[str]:
        """The files of the language model of a search, the one that it names first; nothing where it names none."""
        source = [self.source_lm] if search.density_ratio else []
        return [self.lms[search.lm], *source] if search.lm else []

    def target_sets_of(self, runs: Mapping[str, Run]) -> list[str]:
        """The target sets that some runs read, each once."""
        return list(dict.fromkeys(run.config.targets for run in runs.values() if run.config.reads_targets))

    def distils_from(self, run: str) -> dict[str, list[str]]:
        """What a run learns from: the index of target shards, the teacher itself, or, a baseline, from neither.

        The shards themselves are no inputs: any change of one gives a new index.
        """
        config = self.students[run].config
        index = {"index": [self.index_of(config.targets)]} if config.reads_targets else {}
        return index | ({"teacher": [self.teacher]} if config.kd.runs_teacher else {})

    def searches_of(self, run: str) -> list[str]:
        """The searches that a run is decoded with.

        Those that name a chunk size are for streaming students, and those of type fsa, and what ranks their hypotheses
        anew, for stateless predictors, which the configuration asks of all students.
        """
        streaming = run in self.students and self.students[run].config.encoder.streaming
        stateless = run in self.students or self.config.teacher.predictor.type == "stateless"
        return [
            name
            for name, search in self.searches.items()
            if (streaming or not search.chunk_ms) and (stateless or self.searches[search.rescore or name].type != "fsa")
        ]

    def lm_weight(self, run: str, search: str) -> str:
        """The weight of the language model in a search, chosen on dev."""
        return f"{self.results}/decode/{run}/{search}/lm_weight.json"

    def decoding(self, run: str, search: str, testset: str, suffix: str) -> str:
        """A file of one run, search and test set: hypotheses (`parquet`), `score.json` or `score.parquet`."""
        return f"{self.results}/decode/{run}/{search}/{testset}.{suffix}"

    def decodings_of(self, runs: Iterable[str], suffix: str) -> list[str]:
        """The files of some runs for each of their searches and each test set."""
        return [
            self.decoding(run, search, testset, suffix)
            for run in runs
            for search in self.searches_of(run)
            for testset in self.test_sets
        ]

    def alignment(self, run: str, testset: str) -> str:
        """The frames on which one run emits the references of one test set."""
        return f"{self.results}/align/{run}/{testset}.parquet"

    def alignments_of(self, runs: Iterable[str]) -> list[str]:
        """The alignments of some runs, from which emission delays are read: every test set but dev."""
        return [self.alignment(run, testset) for run in runs for testset in self.config.corpus.test]

    def reported(self, paths: Iterable[str]) -> list[str]:
        """What the report reads of these: all, or what is there."""
        return [path for path in paths if not self.config.report.finished_only or Path(path).exists()]

    @property
    def reported_runs(self) -> list[str]:
        """The runs in the report; a run's alignments may be finished before its first score: then it is left out."""
        return [run for run in ("teacher", *self.runs) if self.reported(self.decodings_of([run], "score.json"))]

    def sweep_scores(self) -> list[str]:
        """What a sweep is judged by: dev, decoded with the first of the searches that are for every system."""
        search, *_ = self.searches_of("teacher")
        return [self.decoding(run, search, "dev", "score.json") for run in self.sweep_runs]

    # ------------------------------------------------------------------------------------------------------- artifacts
    def artifacts(self) -> list[Artifact]:
        """What the workflow makes of the configuration, a sweep and a download included, in the order of the work."""
        known = [*self._data(), *self._lms(), *self._teachers(), *self._targets(), *self._students()]
        known += [*self._lm_weights(), *self._hypotheses(), *self._alignments(), *self._scores(), *self._reports()]
        runs = ["teacher", *self.runs]
        wanted = [self.data_summary, *map(self.gate_in, self.read_teachers(self.students))]
        wanted += map(self.index_of, self.target_sets_of(self.runs))
        wanted += [*self.decodings_of(runs, "score.json"), *self.alignments_of(runs)]
        wanted += [self.report, *([self.choice] if self.sweep_runs else [])]
        wanted += [self.downloaded] if self.downloads_corpus else []
        # Language models and target sets that nothing reads are not made, nor a sweep's decodings of test sets.
        return _needed(known, wanted)

    def _data(self) -> Iterator[Artifact]:
        corpus = self.config.corpus.model_dump(mode="json")
        yield Artifact("prepare", "synth", self.corpus_sums, corpus["synth"], (), tuple(self.corpus_text))
        yield Artifact("prepare", "download", self.downloaded, {"parts": self.corpus_parts}, ())
        made = (self.corpus_sums,) if self.makes_corpus else ()
        splits = tuple(self.prepared(split) for split in ("train", *self.test_sets))
        yield Artifact(
            "prepare", "prepare", self.prepared_summary, corpus, (), (*splits, self.unlabelled_text), dated=made
        )
        settings = self.config.tokenizer.model_dump(mode="json")
        yield Artifact("prepare", "tokenizer", self.tokenizer, settings, (self.prepared("train"),))
        made_from, tests = (*splits, self.tokenizer), tuple(map(self.cuts_of, self.test_sets))
        yield Artifact("prepare", "check", self.data_summary, corpus, made_from, tests, shards=self.train_shards)

    def _lms(self) -> Iterator[Artifact]:
        lm, transcripts = self.config.lm, (self.prepared("train"), self.tokenizer)
        text = (*transcripts, *self.corpus_text, *map(_tidy, lm.texts))
        ngram, source = (self.ngrams[name].model_dump(mode="json", exclude={"lstm"}) for name in ("lm", "source"))
        yield Artifact("lm", "lm", self.lms["ngram"], ngram, text, dated=(_tidy(lm.arpa),) if lm.arpa else ())
        yield Artifact("lm", "lm", self.source_lm, source, transcripts)
        lstm = lm.model_dump(mode="json", include={"lstm", "transcripts", "texts"})
        yield Artifact("lm", "lstm-lm", self.lms["lstm"], lstm, (*text, self.dev_cuts))

    def _teachers(self) -> Iterator[Artifact]:
        for folder, config in self.teachers.items():
            settings, model = config.model_dump(mode="json"), self.teacher_in(folder)
            checkpoints = f"{Path(model).parent}/checkpoints"
            yield Artifact("teacher", "train-teacher", model, settings, self._trained_on, checkpoints=checkpoints)
            yield Artifact("teacher", "gate", self.gate_in(folder), {"max_wer": settings["max_wer"]}, (model,))

    def _targets(self) -> Iterator[Artifact]:
        for name, config in self.target_sets.items():
            settings, shards = config.model_dump(mode="json"), self.shards_of(name)
            teachers = tuple(map(_tidy, self.teachers_of(name)))
            series = self.shard(name, "*")
            # Not the gate: it has to stand there, and passing it anew changes no target.
            shared = (*teachers, self.tokenizer, *self.lm_of(config.search))
            paths = [(path,) for path in self.shards_of(config.along)] if config.along else [()] * len(shards)
            for shard, cuts, along in zip(shards, self.train_shards, paths, strict=True):
                yield Artifact("targets", "dump", shard, settings, (*shared, cuts, *along), series=series)
            index, rows = self.index_of(name), f"{Path(shards[0]).parent}/index.arrow"
            yield Artifact("targets", "verify", index, {}, (*teachers, self.tokenizer), (rows,), dated=tuple(shards))

    def _students(self) -> Iterator[Artifact]:
        for run, (_, config) in self.students.items():
            inputs = (*self._trained_on, *chain(*self.distils_from(run).values()))
            settings, folder = config.model_dump(mode="json"), self.checkpoints_of(run)
            phase = self._phase(run, "student")
            yield Artifact(phase, "train-student", self.model_of(run), settings, inputs, checkpoints=folder)

    def _lm_weights(self) -> Iterator[Artifact]:
        weights = {"lm_weights": self.config.decode.lm_weights}
        for run, name in self._decoded():
            search = self.searches[name]
            if search.lm and not search.rescore:
                settings = {"search": name, **search.model_dump(mode="json")} | weights
                inputs = (self.model_of(run), self.dev_cuts, self.tokenizer, *self.lm_of(search))
                out, series = self.lm_weight(run, name), self.lm_weight(run, "*")
                yield Artifact(self._phase(run, "decode"), "tune-lm", out, settings, inputs, series=series)

    def _hypotheses(self) -> Iterator[Artifact]:
        decode = self.config.decode
        seconds, weights = {"max_duration_s": decode.max_duration_s}, {"lm_weights": decode.lm_weights}
        for (run, name), testset in product(self._decoded(), self.test_sets):
            search = self.searches[name]
            settings = {"search": name, **search.model_dump(mode="json")}
            phase, shared = self._phase(run, "decode"), (self.tokenizer, *self.lm_of(search))
            out, series = (self.decoding(run, *of, "parquet") for of in ((name, testset), ("*", "*")))
            if search.rescore:
                nbest = tuple(self.decoding(run, search.rescore, of, "parquet") for of in (testset, "dev"))
                inputs = (*nbest, self.dev_cuts, *shared)
                yield Artifact(phase, "rescore", out, settings | weights, inputs, series=series)
            else:
                weight = [self.lm_weight(run, name)] if search.lm else []
                inputs = (self.model_of(run), self.cuts_of(testset), *shared, *weight)
                yield Artifact(phase, "decode", out, settings | seconds, inputs, series=series)

    def _alignments(self) -> Iterator[Artifact]:
        settings = {"max_duration_s": self.config.decode.max_duration_s}
        for run, testset in product(("teacher", *self.students), self.config.corpus.test):
            inputs = (self.model_of(run), self.cuts_of(testset), self.tokenizer)
            out, series = self.alignment(run, testset), self.alignment(run, "*")
            yield Artifact(self._phase(run, "score"), "align", out, settings, inputs, series=series)

    def _scores(self) -> Iterator[Artifact]:
        for (run, search), testset in product(self._decoded(), self.test_sets):
            system = self.students[run].system if run in self.students else run
            settings = {"run": run, "system": system, "search": search, "testset": testset}
            out, rows = (self.decoding(run, search, testset, f"score.{suffix}") for suffix in ("json", "parquet"))
            inputs = (self.decoding(run, search, testset, "parquet"), self.cuts_of(testset))
            series = self.decoding(run, "*", "*", "score.json")
            yield Artifact(self._phase(run, "score"), "score", out, settings, inputs, (rows,), series=series)

    def _reports(self) -> Iterator[Artifact]:
        settings = self.config.report.model_dump(mode="json")
        folder, runs = Path(self.report).parent, self.reported_runs
        found = [*self.decodings_of(runs, "score.json"), *self.alignments_of(runs)]
        found += map(self.index_of, self.target_sets_of(self.runs))
        others = (f"{folder}/summary.json", f"{folder}/table.txt")
        yield Artifact("report", "report", self.report, settings, (*self.reported(found), self.data_summary), others)
        if self.sweep_runs:
            yield Artifact("sweep", "choose", self.choice, {}, tuple(self.sweep_scores()), (f"{folder}/sweep.txt",))

    @property
    def _trained_on(self) -> tuple[str, ...]:
        return (*self.train_shards, self.dev_cuts, self.tokenizer)

    def _decoded(self) -> list[tuple[str, str]]:
        """Every run, the teacher among them, with each of its searches."""
        return [(run, search) for run in ("teacher", *self.students) for search in self.searches_of(run)]

    def _phase(self, run: str, phase: str) -> str:
        """The phase of what is made of a run: that of all others, or the sweep."""
        return "sweep" if run in self.sweep_runs else phase


def _tidy(path: str) -> str:
    """A path as a run record has it."""
    return str(Path(path))


def _needed(known: list[Artifact], wanted: list[str]) -> list[Artifact]:
    """Those of the artifacts that the wanted files are or are made from, in their order."""
    maker = {file: artifact for artifact in known for file in artifact.files}
    needed, waiting = set[str](), list(wanted)
    while waiting:
        artifact = maker.get(waiting.pop())  # none: a file that is given
        if artifact and artifact.path not in needed:
            needed.add(artifact.path)
            waiting += [*artifact.inputs, *artifact.dated]
    return [artifact for artifact in known if artifact.path in needed]
