"""Study files: their trials, what they refuse, and what trials share, with fake stages."""

from pathlib import Path

import pytest

from sirt_ray.artifacts.store import Store
from sirt_ray.benchmarks.registry import REGISTRY
from sirt_ray.cli.main import main
from sirt_ray.config import study as studies
from sirt_ray.config.study import Study, Trial
from sirt_ray.driver.plan import work_of
from sirt_ray.errors import ArtifactError, ConfigError
from tests.helpers.fakes import FakeStages, Killed, dry_run, run_fake
from tests.helpers.paths import JOB_FILES, JOBS

GOOD = """\
study: mine
output: {output}
job:
  data: {{train: [gsm8k], evaluate: [gsm8k, math], num_train: 40, num_validation: 5, num_test: 7}}
  teacher: {{model: big}}
  refine: {{num_cot: 6}}
grid:
  student:
    7b: {{student.model: small}}
    13b: {{student.model: middle}}
  method:
    tuned: {{method: instruction_tuning}}
    rft: {{method: rft}}
  seed: [0, 1]
"""


def load(tmp_path: Path, more: str = "", *overrides: str, text: str = GOOD) -> Study:
    path = tmp_path / "study.yaml"
    path.write_text(text.format(output=tmp_path / "runs") + more)
    return studies.load(path, overrides, ["gsm8k", "math"])


def refused(tmp_path: Path, more: str = "", *overrides: str, text: str = GOOD) -> str:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, more, *overrides, text=text)
    return str(caught.value)


def test_the_grid_spans_one_trial_for_every_combination(tmp_path: Path) -> None:
    study = load(tmp_path)
    assert [trial.name for trial in study.trials] == [
        f"{student}-{method}-seed{seed}"
        for student in ("7b", "13b")
        for method in ("tuned", "rft")
        for seed in (0, 1)
    ]
    trial = study.trials[-1]
    assert trial.labels == {"student": "13b", "method": "rft", "seed": "seed1"}
    job = trial.job
    assert (job.student.model, job.seed, job.method) == ("middle", 1, "rft")
    assert (job.refine.loss, job.refine.num_cot) == ("rft", 6)
    assert Path(job.output) / job.name == tmp_path / "runs/mine/13b-rft-seed1"


def test_an_override_wins_in_every_trial_and_output_is_the_studys(tmp_path: Path) -> None:
    study = load(tmp_path, "", "refine.num_cot=9", "output=elsewhere", "seed=5")
    assert {trial.job.refine.num_cot for trial in study.trials} == {9}
    assert {trial.job.seed for trial in study.trials} == {5}
    assert study.folder == Path("elsewhere/mine")


def test_combinations_are_left_out_or_taken(tmp_path: Path) -> None:
    excluded = load(tmp_path, "exclude: [{student: 13b, method: rft}, {seed: 1}]\n")
    assert [trial.name for trial in excluded.trials] == [
        "7b-tuned-seed0",
        "7b-rft-seed0",
        "13b-tuned-seed0",
    ]
    only = load(tmp_path, "only: [{student: [7b], seed: [0, 1], method: rft}]\n")
    assert [trial.name for trial in only.trials] == ["7b-rft-seed0", "7b-rft-seed1"]


def test_all_problems_come_at_once_with_file_line_and_trials(tmp_path: Path) -> None:
    text = GOOD.replace("refine: {{", "tune: {{betta: 1}}\n  refine: {{").replace(
        "{{method: rft}}", "{{method: rft, refine.loss: kto}}"
    )
    told = refused(tmp_path, text=text)
    file = tmp_path / "study.yaml"
    assert f"{file}:6: tune.betta: no such setting" in told and "(in all trials)" in told
    assert "2 problems" in told and "pairs.rule 'right' rejects nothing" in told
    assert "7b-rft-seed0, 7b-rft-seed1, 13b-rft-seed0 and 1 more" in told


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ("exclude: [{studnet: 7b}]\n", "studnet is no axis. There are student, method, seed"),
        ("exclude: [{student: 70b}]\n", "student has no 70b. There are 7b, 13b"),
        ("only: []\n", "no combination is left"),
        ("  tuning: {fast: {seed: 3}}\n", "seed is set by the axis seed already"),
        ("  tuning: {fast: {name: other}}\n", "name is set by the study"),
        ("  tuning: {fa/st: {tune.epochs: 1}}\n", "a label names folders"),
        ("  tuning: {}\n", "has no labels"),
        ("grind: {}\n", "grind: no such setting"),
    ],
)
def test_nonsense_is_refused(tmp_path: Path, more: str, words: str) -> None:
    assert words in refused(tmp_path, more)


def test_a_study_in_object_storage_is_refused(tmp_path: Path) -> None:
    text = GOOD.replace("output: {output}", "output: s3://bucket/runs")
    assert "links, which object storage does not have" in refused(tmp_path, text=text)


def test_what_an_endpoint_was_paid_for_is_paid_for_by_no_other_trial(tmp_path: Path) -> None:
    text = GOOD.replace("{{model: big}}", "{{endpoint: {{url: 'http://a/v1', model: m}}}}")
    caches = {
        trial.job.teacher.endpoint.cache
        for trial in load(tmp_path, text=text).trials
        if trial.job.teacher.endpoint is not None
    }
    assert caches == {str(tmp_path / "runs/mine/endpoint")}


# What trials share


def run(study: Study, trial: Trial, stages: FakeStages, force: bool = False) -> None:
    store = Store(study.folder / trial.name, shared_dir=study.shared_dir, force=force)
    run_fake(trial.job, stages, store)


def test_what_two_trials_share_is_built_once(tmp_path: Path) -> None:
    study = load(tmp_path, "only: [{student: 7b, seed: 0}]\n")
    tuned, rft = study.trials
    first, second = FakeStages(), FakeStages()
    run(study, tuned, first)
    run(study, rft, second)
    assert second.calls == [
        "sample 1 from round_00",
        "pair 1",
        "imitate 1 from baseline",
        "evaluate round_01",
    ]
    links = [study.folder / trial.name / "round_00/student" for trial in study.trials]
    assert links[0].resolve() == links[1].resolve()
    assert links[0].readlink().parts[:3] == ("..", "..", "artifacts")
    assert (links[0] / "record.json").exists()
    moved = study.folder.rename(tmp_path / "moved")
    assert (moved / rft.name / "round_01/student/record.json").exists()


def test_a_trial_that_was_killed_is_continued_by_the_next_that_wants_the_same(
    tmp_path: Path,
) -> None:
    study = load(tmp_path, "only: [{student: 7b, seed: 0}]\n")
    with pytest.raises(Killed):
        run(study, study.trials[0], FakeStages(kill_in="tune"))
    stages = FakeStages()
    run(study, study.trials[1], stages)
    assert stages.calls[0] == "tune" and "demonstrate" not in stages.calls
    assert not list(study.folder.rglob("*.partial"))


def test_a_changed_trial_is_refused_and_redone_without_touching_the_others(tmp_path: Path) -> None:
    only = "only: [{student: 7b, seed: 0}]\n"
    study = load(tmp_path, only)
    for trial in study.trials:
        run(study, trial, FakeStages())
    changed = load(tmp_path, only, "refine.learning_rate=1.0e-3")
    second = changed.trials[1]
    planned = dry_run(
        second.job, Store(changed.folder / second.name, shared_dir=changed.shared_dir)
    )
    with pytest.raises(ArtifactError, match="learning_rate"):
        planned.raise_if_stale()
    with pytest.raises(ArtifactError, match="learning_rate"):
        run(changed, changed.trials[1], FakeStages())
    redone = FakeStages()
    run(changed, changed.trials[1], redone, force=True)
    assert redone.calls == ["imitate 1 from baseline", "evaluate round_01"]
    back = FakeStages()
    run(study, study.trials[1], back, force=True)
    assert back.calls == []


def test_a_plan_of_a_study_at_work_has_as_many_artifacts_as_the_run_makes(tmp_path: Path) -> None:
    """Two trials that differ in the pair rule only. Scores of rounds that are missing are unknown:
    no round is planned as rolled back, so the second rounds do not share a student."""
    rules = GOOD.split("grid:")[0] + (
        "grid:\n  rule:\n    dpo_cot: {{refine.pairs.rule: dpo_cot}}\n"
        "    correctness: {{refine.pairs.rule: correctness}}\n"
    )
    overrides = ["student.model=small", "refine.rounds=2", "refine.roll_back=true"]
    study = load(tmp_path, "", *overrides, text=rules)
    stores = [
        Store(study.folder / trial.name, shared_dir=study.shared_dir) for trial in study.trials
    ]
    worlds = [FakeStages(held_out={"round_00": 60}, kill_in=death) for death in ("pair 1", "")]
    with pytest.raises(Killed):
        run_fake(study.trials[0].job, worlds[0], stores[0])
    planned = [dry_run(trial.job, store) for trial, store in zip(study.trials, stores, strict=True)]
    assert [status.name for status in planned[0].statuses] == [
        status.name for status in planned[1].statuses
    ]
    expected = {status.path for plan in planned for status in plan.statuses}
    for trial, store, world in zip(study.trials, stores, worlds, strict=True):
        outcome = run_fake(trial.job, world, store)
        assert outcome.rolled_back == ()
    made = {path.parent for path in study.shared_dir.rglob("record.json")}
    assert made == expected
    assert {path.name.rsplit("-", 1)[0] for path in made} >= {"samples", "pairs", "student"}


# What is known beforehand


def test_a_plan_counts_from_the_settings(tmp_path: Path) -> None:
    job = (
        load(tmp_path, "", "refine.batch_size=10", "refine.validation_fraction=0.5").trials[-1].job
    )
    assert work_of(job, "demonstrations").completions == 40
    assert work_of(job, "baseline/evaluation").completions == (7 + 7) * 2 + 5
    assert work_of(job, "round_01/samples").completions == 40 * 6
    student = work_of(job, "round_01/student")
    assert (student.examples, student.steps) == (40 * 6 + 40, 14 * 3)


@pytest.mark.parametrize("path", JOB_FILES, ids=[path.name for path in JOB_FILES])
def test_every_job_and_study_of_ours_can_be_planned_without_a_network(
    path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    assert main(["plan", str(path)]) == 0, capsys.readouterr().err
    shown = capsys.readouterr().out
    assert "round_0" in shown or "distinct" in shown
    if path.parent.name == "paper":
        assert "not checked: " in shown and "a run looks for it on the hub" in shown


def test_a_study_lies_on_top_of_its_base_which_gives_the_order_of_the_axes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    grid = "grid:\n  student: {7b: {student.model: small}}\n  method: {}\n  seed: [0, 1]\n"
    (tmp_path / "base.yaml").write_text(GOOD[: GOOD.index("grid:")].format(output="runs") + grid)
    text = "base: base.yaml\nstudy: own\njob: {{refine: {{num_cot: 9}}}}\n"
    found = load(tmp_path, "grid: {method: {rft: {method: rft}}, seed: [5]}\n", text=text)
    assert [trial.name for trial in found.trials] == ["7b-rft-seed5"]
    assert found.name == "own"
    job = found.trials[0].job
    assert (job.refine.num_cot, job.data.num_train, job.student.model) == (9, 40, "small")
    message = refused(tmp_path, "grid: {method: {rft: {method: magic}}}\n", text=text)
    assert f"{tmp_path / 'study.yaml'}:4: method: " in message
    (tmp_path / "base.yaml").write_text((tmp_path / "base.yaml").read_text().replace("40", "-1"))
    message = refused(tmp_path, "grid: {method: {rft: {method: rft}}}\n", text=text)
    assert f"{tmp_path / 'base.yaml'}:4: data.num_train: " in message
    assert main(["plan", str(JOBS / "paper" / "in_family.yaml")]) == 0
    shown = capsys.readouterr().out.splitlines()
    (line,) = (line for line in shown if line.startswith("Base: "))
    assert line.split(", whose base is ")[-1].endswith("qlora.yaml")


def test_every_study_of_ours_names_known_benchmarks(tmp_path: Path) -> None:
    for path in JOB_FILES:
        if studies.is_study(path):
            assert studies.load(path, [], REGISTRY).trials
