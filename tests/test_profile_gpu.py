"""The session that profiles a GPU keeps its deadlines and its file, rehearsed without one."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
import strict_cupy

from tinyadv.backend import BackendError

PATH = Path(__file__).parent / "benchmarks" / "profile_gpu.py"


@pytest.fixture(scope="module")
def profile_gpu():
    spec = importlib.util.spec_from_file_location("profile_gpu", PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Clock:
    """Seconds that pass only when somebody lets them."""

    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now

    def work(self, seconds, result=None):
        def measure():
            self.now += seconds
            return result

        return measure


def read(path):
    return json.loads(path.read_text(encoding="utf-8"))


# ---- deadlines and the file ----------------------------------------------------------------------


def test_a_part_leaves_out_what_it_cannot_begin_before_its_deadline(profile_gpu, tmp_path):
    clock = Clock()
    session = profile_gpu.Session(tmp_path / "out.json", 100, clock)
    cases = {"first": clock.work(4, 1), "second": clock.work(7, 2), "third": clock.work(1, 3)}
    assert session.part("one", cases, 10) == {"first": 1, "second": 2}
    assert read(session.out)["parts"] == {
        "one": {"results": {"first": 1, "second": 2}, "left_out": ["third"], "seconds": 11}
    }


def test_no_part_begins_anything_after_the_end_of_the_session(profile_gpu, tmp_path):
    clock = Clock()
    session = profile_gpu.Session(tmp_path / "out.json", 10, clock)
    session.part("long", {"a": clock.work(6), "b": clock.work(6)}, 50)
    assert session.part("late", {"c": clock.work(1)}, 50) == {}
    parts = read(session.out)["parts"]
    assert (parts["long"]["left_out"], parts["late"]["left_out"]) == ([], ["c"])


def test_every_result_is_in_the_file_before_the_next_is_measured(profile_gpu, tmp_path):
    out, seen = tmp_path / "out.json", []
    session = profile_gpu.Session(out)

    def look():
        seen.append(list(read(out)["parts"]["one"]["results"]))
        return 2.5

    session.part("one", {"first": lambda: {"total_us": 1.5}, "second": look, "third": look}, 10)
    assert seen == [["first"], ["first", "second"]]
    assert read(out)["parts"]["one"]["results"]["first"] == {"total_us": 1.5}
    assert [path.name for path in tmp_path.iterdir()] == ["out.json"]


def test_an_error_is_a_result_and_the_others_follow(profile_gpu, tmp_path):
    session = profile_gpu.Session(tmp_path / "out.json")
    results = session.part("one", {"wrong": lambda: 1 / 0, "right": lambda: 1}, 10)
    assert results == {"wrong": {"error": "ZeroDivisionError: division by zero"}, "right": 1}
    assert read(session.out)["parts"]["one"]["results"] == results


# ---- what is measured ----------------------------------------------------------------------------


@pytest.mark.parametrize(("host", "device"), [(1e-4, 3e-4), (1e-3, 0.0), (0.5, 0.25)])
def test_the_time_of_the_host_and_the_time_until_the_device_is_done(profile_gpu, host, device):
    clock, queued, calls = Clock(), [], []

    def run():
        clock.now += host
        queued.append(device)
        calls.append(1)

    def wait():
        clock.now += sum(queued)
        queued.clear()

    times = profile_gpu.timed(run, wait, clock)
    assert times["enqueue_us"] == pytest.approx(1e6 * host)
    assert times["total_us"] == pytest.approx(1e6 * (host + device))
    assert len(calls) <= 2 + 10 * profile_gpu.ROUNDS


def test_every_convolution_in_every_direction(profile_gpu):
    cases = profile_gpu.convolutions(strict_cupy, lambda: None, dict.fromkeys(profile_gpu.NETS, 1))
    assert len(cases) == 2 * 4 * 3 + 5  # two layers each; five of them with stride 1
    for name, measure in cases.items():
        if name.startswith(("slides_cnn", "fast_cnn")):
            assert measure()["total_us"] > 0


def test_the_adjoint_as_a_convolution_is_the_adjoint(profile_gpu, monkeypatch):
    monkeypatch.setattr(profile_gpu, "timed", lambda run, wait: run())
    cases = profile_gpu.convolutions(strict_cupy, None, {"madry_cnn": 2, "interval_cnn": 1})
    variants = [name for name in cases if name.endswith(" as a convolution")]
    assert len(variants) == 3
    for name in variants:
        expected = cases[name.removesuffix(" as a convolution")]()
        assert strict_cupy.allclose(cases[name](), expected, rtol=1e-3, atol=1e-3)


def test_steps_are_the_medians_of_turns_and_a_lost_worker_is_an_error(profile_gpu, monkeypatch):
    asked = []

    class Worker:
        def __init__(self, name, tf32):
            self.name, self.tf32, self.times = name, tf32, iter([4.0, 2.0, 8.0])

        def ask(self, seconds, **request):
            asked.append((self.name, self.tf32, seconds, request["task"]))
            return next(self.times) * (1 if self.name == "tinyadv" else 0.5)

    monkeypatch.setattr(profile_gpu, "Worker", Worker)
    workers = {}
    cases = profile_gpu.steps(lambda: 7.0, {"slides_cnn": 2}, workers, ["tinyadv", "torch"])
    assert len(cases) == 2 * len(profile_gpu.TASKS)
    first = cases["slides_cnn: training step, TF32 off"]
    assert first() == {"tinyadv": 4.0, "torch": 2.0, "ratio": 2.0}
    assert asked == 3 * [
        ("tinyadv", False, 7.0, "training step"), ("torch", False, 7.0, "training step")
    ]  # fmt: skip
    assert set(workers) == {("tinyadv", False), ("torch", False)}


def test_the_next_step_gets_a_new_worker(profile_gpu, monkeypatch):
    made, closed = [], []

    class Worker:
        def __init__(self, name, tf32):
            made.append(self)

        def ask(self, seconds, **request):
            if self is made[0]:
                raise BrokenPipeError
            return 2.0

        def close(self):
            closed.append(self)

    monkeypatch.setattr(profile_gpu, "Worker", Worker)
    cases = profile_gpu.steps(lambda: 7.0, {"slides_cnn": 2}, {}, ["tinyadv"])
    with pytest.raises(BrokenPipeError):
        cases["slides_cnn: training step, TF32 on"]()
    assert closed == made
    assert cases["slides_cnn: input gradient, TF32 on"]() == {"tinyadv": 2.0}
    assert len(made) == 2


def test_a_worker_that_does_not_answer_is_ended(profile_gpu, monkeypatch):
    monkeypatch.setattr(profile_gpu, "__file__", __file__)  # this file answers nothing
    worker = profile_gpu.Worker("tinyadv", tf32=False)
    with pytest.raises((TimeoutError, BrokenPipeError)):
        worker.ask(0.0, do="time")
    worker.close()
    assert worker.process.returncode is not None
    for pipe in (worker.process.stdin, worker.process.stdout):
        pipe.close()


# ---- the whole ----------------------------------------------------------------------------------


def test_a_rehearsal_writes_every_part(profile_gpu, tmp_path, monkeypatch):
    monkeypatch.setattr(profile_gpu, "run_tests", lambda backend, seconds: {"passed": True})
    out = tmp_path / "out.json"
    profile_gpu.main(["--out", str(out), "--backend", "strict", "--nets", "fast_cnn"])
    parts = read(out)["parts"]
    assert list(parts) == list(profile_gpu.DEADLINES)
    assert all(part["left_out"] == [] for part in parts.values())
    for name in ("calibration", "convolutions"):
        assert all(result["total_us"] > 0 for result in parts[name]["results"].values())


def test_nothing_is_timed_if_the_tests_fail(profile_gpu, tmp_path, monkeypatch):
    ran = subprocess.CompletedProcess([], 1, "1 failed", "")
    monkeypatch.setattr(profile_gpu.subprocess, "run", lambda *args, **kwargs: ran)
    out = tmp_path / "out.json"
    with pytest.raises(SystemExit, match="the tests failed"):
        profile_gpu.main(["--out", str(out), "--backend", "strict"])
    parts = read(out)["parts"]
    assert list(parts) == ["correctness"]
    assert parts["correctness"]["results"]["tests"] == {"passed": False, "says": "1 failed"}


def test_without_a_gpu_one_sentence_says_so(profile_gpu, tmp_path, monkeypatch):
    def get_backend(name):
        raise BackendError("no device here")

    monkeypatch.setattr("tinyadv.backend.get_backend", get_backend)
    with pytest.raises(SystemExit, match="nothing to measure: no device here; --backend strict"):
        profile_gpu.main(["--out", str(tmp_path / "out.json")])
    assert not list(tmp_path.iterdir())


def test_it_runs_from_anywhere(tmp_path):
    command = [sys.executable, str(PATH), "--out", "out.json", "--backend", "strict",
               "--parts", "convolutions", "--nets", "slides_cnn", "--seconds", "0"]  # fmt: skip
    ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert len(read(tmp_path / "out.json")["parts"]["convolutions"]["left_out"]) == 8
