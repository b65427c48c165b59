"""Job files: what is refused, with which message, and that every job of the project parses."""

from pathlib import Path

import pytest
import yaml

from sirt_ray.config import load as jobfile
from sirt_ray.config import study
from sirt_ray.config.job import JobConfig
from sirt_ray.errors import ConfigError
from tests.helpers import paths

JOB_FILES = [path for path in paths.JOB_FILES if not study.is_study(path)]
BENCHMARKS = {"gsm8k", "commonsense_qa"}
GOOD = """\
name: mine
data:
  train: [gsm8k]
  evaluate: [gsm8k, commonsense_qa]
teacher: {model: big}
student: {model: small}
refine:
  rounds: 2
"""


def load(tmp_path: Path, text: str = GOOD, *overrides: str) -> JobConfig:
    path = tmp_path / "job.yaml"
    path.write_text(text)
    return jobfile.load(path, overrides, BENCHMARKS)


def refused(tmp_path: Path, text: str = GOOD, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, text, *overrides)
    return str(caught.value)


def test_a_resolved_job_parses_to_itself(tmp_path: Path) -> None:
    job = load(tmp_path)
    assert load(tmp_path, jobfile.dump(job)) == job


def test_overrides_win_and_reach_new_sections(tmp_path: Path) -> None:
    job = load(tmp_path, GOOD, "refine.rounds=5", "tune.lora.rank=4", "data.train=[commonsense_qa]")
    assert job.refine.rounds == 5
    assert job.tune.lora is not None and job.tune.lora.rank == 4
    assert job.data.train == ["commonsense_qa"]


def test_all_problems_come_at_once_with_file_and_line(tmp_path: Path) -> None:
    text = GOOD.replace("rounds: 2", "rounds: -1\n  betta: 0.1\n  beta: high")
    message = refused(tmp_path, text, "data.train=[gsm9k]")
    assert "4 problems" in message
    assert f"{tmp_path / 'job.yaml'}:8: refine.rounds: " in message
    assert f"{tmp_path / 'job.yaml'}:9: refine.betta: no such setting" in message
    assert f"{tmp_path / 'job.yaml'}:10: refine.beta: " in message
    assert "gsm9k" in message and "Known are commonsense_qa, gsm8k" in message


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (GOOD.replace("teacher: {model: big}\n", ""), "teacher: is required"),
        (GOOD.replace("{model: big}", "{}"), "exactly one of model"),
        (
            GOOD.replace("{model: big}", "{endpoint: {url: 'http://a/v1'}}"),
            "teacher.endpoint.model: is required",
        ),
        (GOOD + "  num_plain: 0\n", "num_plain to 1 or more"),
        (GOOD + "  pairs: {rule: correctness}\n  num_cot: 1\n", "num_cot to 2 or more"),
        (GOOD + "  sampling: {temperature: 0}\n", "Raise the temperature"),
        (GOOD + "  lora: {dropout: 0.1}\n", "Set it to 0"),
        (GOOD + "  desirable_weight: 2.0\n", "desirable_weight is set, but loss 'sigmoid'"),
        (GOOD + "  loss: kto\n  nll_weight: 1.0\n", "nll_weight is set, but loss 'kto'"),
        (GOOD + "  loss: simpo\n  reference: initial\n", "choose one of sigmoid, ipo, robust, kto"),
        (GOOD + "tune: {select_by: accuracy}\n", "tuning has no pairs"),
        (GOOD + "  pairs: {rule: right}\n", "Set loss to 'rft'"),
        (GOOD + "  pairs: {rule: spin}\n  loss: rft\n", "Set pairs.rule to 'right'"),
        (GOOD + "  pairs: {rule: spin, with_demonstrations: true}\n", "nothing else. Remove it"),
        (GOOD + "  start: base\n", "Set start to 'student'"),
        (GOOD + "  tasks: [commonsense_qa]\n", "Add them to data.train"),
        (GOOD + "  even_rounds: {betta: 1}\n", "even_rounds.betta: Extra inputs"),
        (GOOD + "  even_rounds: {rounds: 1}\n", "which are not a round's"),
        (GOOD + "  even_rounds: {loss: kto, nll_weight: 1}\n", "but loss 'kto' does not use it"),
        (GOOD.replace("rounds: 2", "rounds: 0") + "tune: {skip: true}\n", "nothing would be"),
        (GOOD + "method: magic\n", "no known method. There are instruction_tuning, rft"),
        (GOOD + "  select_by: accuracy\n  loss: rft\n", "loss 'rft' has none"),
        (
            GOOD + "  select_by: accuracy\n  validation_fraction: 0\n",
            "select_by 'accuracy' compares",
        ),
        (GOOD + "tune: {patience: 3, select_by: last}\n", "take patience away"),
        (GOOD + "tune: {patience: 3, validation_fraction: 0}\n", "Set it above 0"),
        (GOOD.replace("name: mine", "name: ../mine"), "name: "),
        (GOOD.replace("[gsm8k]", "[gsm8k, gsm8k]"), "names a benchmark twice: gsm8k"),
        (GOOD.replace("[gsm8k]", "[gsm8k"), "no valid YAML"),
        ("", "holds no settings"),
        (GOOD + "resources: {student: {min_replicas: 3}}\n", "above max_replicas"),
    ],
)
def test_nonsense_is_refused_in_words_a_user_can_act_on(
    tmp_path: Path, text: str, words: str
) -> None:
    assert words in refused(tmp_path, text)


def test_a_malformed_override_names_itself(tmp_path: Path) -> None:
    assert "--set refine.rounds" in refused(tmp_path, GOOD, "refine.rounds")
    assert "--set refine.rounds=many: refine.rounds" in refused(
        tmp_path, GOOD, "refine.rounds=many"
    )


def test_a_missing_file_says_which(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.yaml"):
        jobfile.load(tmp_path / "nowhere.yaml", [], BENCHMARKS)


@pytest.mark.parametrize("path", JOB_FILES, ids=[path.name for path in JOB_FILES])
def test_every_job_parses_and_shows_only_what_it_changes(path: Path) -> None:
    from sirt_ray.benchmarks.registry import REGISTRY

    job = jobfile.load(path, [], REGISTRY)
    written = yaml.safe_load(path.read_text())
    if base := written.pop("base", None):
        below = jobfile.load(path.parent / base, [], REGISTRY).model_dump(mode="json")
        assert list(_repeated(written, below)) == []
        return
    teacher: dict[str, object] = {"model": job.teacher.model}
    if job.teacher.endpoint is not None:
        required = {name: written["teacher"]["endpoint"].pop(name) for name in ("url", "model")}
        teacher = {"endpoint": required}
    defaults = JobConfig.model_validate(
        {
            "name": job.name,
            "data": {"train": job.data.train, "evaluate": job.data.evaluate},
            "teacher": teacher,
            "student": {"model": job.student.model},
        }
    ).model_dump(mode="json")
    written["teacher"].pop("model", None)
    for required in ("name", "student"):
        written.pop(required)
    for section in ("train", "evaluate"):
        written["data"].pop(section)
    assert list(_repeated(written, defaults)) == []


def _repeated(written: dict[str, object], defaults: object, at: str = "") -> list[str]:
    """Return settings that a job sets although they are the default."""
    found: list[str] = []
    for key, value in written.items():
        default = defaults.get(key) if isinstance(defaults, dict) else None
        if isinstance(value, dict):
            found += _repeated(value, default, f"{at}{key}.")
        elif default is not None and default == value:
            found.append(f"{at}{key}")
    return found


class TestBase:
    def folder(self, tmp_path: Path, **files: str) -> Path:
        (tmp_path / "job.yaml").write_text(GOOD)
        for name, text in files.items():
            path = tmp_path / name.replace("__", "/")
            path.parent.mkdir(exist_ok=True)
            path.with_suffix(".yaml").write_text(text)
        return tmp_path

    def load(self, path: Path, *overrides: str) -> JobConfig:
        return jobfile.load(path, overrides, BENCHMARKS)

    def refused(self, path: Path, *overrides: str) -> str:
        with pytest.raises(ConfigError) as caught:
            self.load(path, *overrides)
        return str(caught.value)

    def test_sections_are_merged_and_everything_else_is_replaced(self, tmp_path: Path) -> None:
        files = self.folder(
            tmp_path,
            more="base: job.yaml\ntune: {lora: {rank: 4}}\nrefine: {num_cot: 9}\n",
            most="base: more.yaml\nname: most\ndata: {evaluate: [gsm8k]}\ntune: {lora: null}\n",
        )
        job = self.load(files / "most.yaml", "refine.num_plain=2")
        assert (job.name, job.data.train, job.data.evaluate) == ("most", ["gsm8k"], ["gsm8k"])
        assert (job.refine.rounds, job.refine.num_cot, job.refine.num_plain) == (2, 9, 2)
        assert job.tune.lora is None
        assert jobfile.base_files(files / "most.yaml") == [files / "more.yaml", files / "job.yaml"]

    def test_it_is_the_job_that_one_file_would_be(self, tmp_path: Path) -> None:
        files = self.folder(tmp_path, top="base: job.yaml\nrefine: {rounds: 3}\n")
        whole = load(tmp_path, GOOD.replace("rounds: 2", "rounds: 3"))
        (tmp_path / "job.yaml").write_text(GOOD)
        job = self.load(files / "top.yaml")
        assert job == whole
        assert "base" not in yaml.safe_load(jobfile.dump(job))

    def test_a_method_is_below_the_base(self, tmp_path: Path) -> None:
        files = self.folder(tmp_path, top="base: job.yaml\nmethod: iterative_rpo\n")
        assert self.load(files / "top.yaml").refine.rounds == 2
        assert self.load(files / "top.yaml").refine.nll_weight == 1.0

    def test_problems_name_the_file_that_holds_the_setting(self, tmp_path: Path) -> None:
        files = self.folder(
            tmp_path,
            base=GOOD.replace("rounds: 2", "rounds: -1\n  betta: 1") + "  num_cot: many\n",
            job2="name: mine\nbase: base.yaml\nrefine:\n  num_cot: -3\n  beta: high\n",
        )
        message = self.refused(files / "job2.yaml", "refine.num_plain=-1")
        assert "5 problems" in message
        assert f"{tmp_path / 'base.yaml'}:8: refine.rounds: " in message
        assert f"{tmp_path / 'base.yaml'}:9: refine.betta: " in message
        assert f"{tmp_path / 'job2.yaml'}:4: refine.num_cot: " in message
        assert f"{tmp_path / 'job2.yaml'}:5: refine.beta: " in message
        assert "--set refine.num_plain=-1: refine.num_plain: " in message

    def test_a_base_that_cannot_be_read_is_refused_with_the_line_that_names_it(
        self, tmp_path: Path
    ) -> None:
        files = self.folder(
            tmp_path,
            missing="name: mine\nbase: nowhere.yaml\n",
            above="# one line\nbase: missing.yaml\n",
            number="base: 3\n",
            broken="base: no_yaml.yaml\n",
            no_yaml="a: 1\nb: [\n",
        )
        message = self.refused(files / "missing.yaml")
        assert f"{files / 'missing.yaml'}:2: base: cannot read {files / 'nowhere.yaml'}" in message
        assert self.refused(files / "above.yaml") == message
        assert f"{files / 'number.yaml'}:1: base: must be the path" in self.refused(
            files / "number.yaml"
        )
        assert f"{files / 'no_yaml.yaml'}:3 is no valid YAML" in self.refused(files / "broken.yaml")
        assert "base: no such setting" in self.refused(files / "job.yaml", "base=job.yaml")

    def test_a_cycle_is_refused(self, tmp_path: Path) -> None:
        files = self.folder(
            tmp_path,
            own="base: own.yaml\n",
            one="name: mine\nbase: below/two.yaml\n",
            below__two="base: ../one.yaml\n",
        )
        assert "own.yaml:1: base: a file cannot be its own base" in self.refused(files / "own.yaml")
        message = self.refused(files / "one.yaml")
        assert f"{files / 'below' / 'two.yaml'}:1: base: a file cannot be its own base" in message

    def test_code_of_a_base_is_as_seen_from_the_base(self, tmp_path: Path) -> None:
        own = "data:\n  train: [coins]\n  benchmarks: {coins: own.py:rows}\nteacher: {model: big}\n"
        files = self.folder(
            tmp_path,
            below__base="name: mine\nstudent: {model: small}\n" + own,
            top="base: below/base.yaml\n"
            "data: {evaluate: [gsm8k]}\nrefine: {pairs: {rule: my.py:best}}\n",
        )
        job = self.load(files / "top.yaml")
        assert job.code == [f"{files}/below/own.py:rows", f"{files}/my.py:best"]


class TestStorage:
    def test_a_run_in_storage_has_a_copy_on_each_node(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("SIRT_CACHE", str(tmp_path))
        job = load(tmp_path, GOOD, "output=s3://bucket/runs")
        assert job.run_dir == tmp_path / "storage" / "s3" / "bucket" / "runs" / "mine"
        assert load(tmp_path).run_dir == Path("runs/mine")

    @pytest.mark.parametrize("setting", ["output", "student.model", "teacher.model"])
    @pytest.mark.parametrize("address", ["s3://me:secret@bucket/runs", "s3://bucket/x?key=secret"])
    def test_keys_in_addresses_are_refused_and_not_repeated(
        self, tmp_path: Path, setting: str, address: str
    ) -> None:
        with pytest.raises(ConfigError, match="environment of the nodes") as caught:
            load(tmp_path, GOOD, f"{setting}={address}")
        assert f"{setting}: an address" in str(caught.value)
        assert "secret" not in str(caught.value)
        assert "secret" not in str(caught.value.__cause__)

    def test_paid_answers_must_outlive_the_node(self, tmp_path: Path) -> None:
        text = GOOD.replace(
            "{model: big}", "{endpoint: {url: http://127.0.0.1:8000/v1, model: big}}"
        )
        assert "Set teacher.endpoint.cache" in refused(tmp_path, text, "output=gs://bucket/runs")
        load(tmp_path, text, "output=gs://bucket/runs", "teacher.endpoint.cache=/shared/answers")


def test_a_key_that_is_there_twice_is_refused_with_both_lines(tmp_path: Path) -> None:
    text = "name: other\n" + GOOD.replace("rounds: 2", "rounds: 2\n  beta: 1\n  rounds: 3")
    text += "tune: {epochs: 1, epochs: 2}\n"
    message = refused(tmp_path, text)
    path = tmp_path / "job.yaml"
    assert "3 problems in the job file; nothing was started" in message
    assert f"{path}:2: name: is set 2 times, in lines 1 and 2, and only one" in message
    assert f"{path}:11: refine.rounds: is set 2 times, in lines 9 and 11, and only one" in message
    assert f"{path}:12: tune.epochs: is set 2 times, in line 12, and only one" in message
    assert "Remove the others" in message


def test_a_key_that_is_there_twice_is_refused_in_lists_bases_and_overrides(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text("name: a\nname: a\n")
    assert "base.yaml:2: name: is set 2 times" in refused(tmp_path, "base: base.yaml\n" + GOOD)
    assert "tune.epochs: is set 2 times" in refused(tmp_path, GOOD, "tune={epochs: 1, epochs: 2}")
    listed = GOOD + "tracking:\n  - {a: 1, a: 2}\n"
    assert "tracking.0.a: is set 2 times" in refused(tmp_path, listed)


def test_settings_of_an_anchor_may_be_replaced(tmp_path: Path) -> None:
    """A merge key is no repetition."""
    text = GOOD.replace("refine:\n", "tune: &both {epochs: 3}\nrefine:\n  <<: *both\n  epochs: 2\n")
    assert load(tmp_path, text).refine.epochs == 2


@pytest.mark.parametrize(
    ("text", "reason"),
    [("name: &x {y: *x}\n", "more than 100,000 values"), ("name: " + "[" * 5000, "too deeply")],
)
def test_a_file_without_an_end_is_refused(tmp_path: Path, text: str, reason: str) -> None:
    assert reason in refused(tmp_path, text)


BOMB = "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]\n"
    for before, name in zip("abcdefghi", "bcdefghij", strict=True)
)
MERGES = "".join(
    f"{name}: &{name} {{k{name}: {{<<: [{', '.join([f'*{before}'] * 9)}]}}}}\n"
    for before, name in zip("abcdefghi", "bcdefghij", strict=True)
)


@pytest.mark.timeout(20)
@pytest.mark.parametrize("text", [f"a: &a [1, 2]\n{BOMB}", f"a: &a {{x: 1}}\n{MERGES}"])
def test_a_small_file_that_is_a_large_one_is_refused_at_once(tmp_path: Path, text: str) -> None:
    assert "more than 100,000 values" in refused(tmp_path, text)


@pytest.mark.parametrize("value", ["1" * 5000, "2026-13-45"])
def test_a_value_that_python_cannot_make_is_refused(tmp_path: Path, value: str) -> None:
    assert "a value that cannot be read" in refused(tmp_path, f"name: {value}\n")
    with pytest.raises(ConfigError, match=r"--set name=.* is no valid YAML"):
        jobfile.set_in({}, f"name={value}")


def test_the_home_in_a_models_path_is_the_users(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    job = load(tmp_path, GOOD, "student.model=~/models/s", "teacher.model=~/t")
    assert (job.student.model, job.teacher.model) == ("/home/me/models/s", "/home/me/t")
    for name in ("owner/~model", "s3://bucket/~/m", "./~"):
        assert load(tmp_path, GOOD, f"student.model={name}").student.model == name


def test_only_a_limit_may_be_infinite(tmp_path: Path) -> None:
    job = load(tmp_path, GOOD, "tune.max_grad_norm=.inf")
    assert load(tmp_path, jobfile.dump(job)) == job
    for setting in ("tune.max_grad_norm=.nan", "tune.max_grad_norm=-.inf", "refine.beta=.inf"):
        assert "1 problem" in refused(tmp_path, GOOD, setting)
