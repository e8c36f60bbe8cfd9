from __future__ import annotations

import json
import sys

import pytest

from r1jax.data import reasoning_tasks
from r1jax.data.reasoning_tasks import grade_in_worker, make_examples, verify, worker_arguments
from r1jax.data.sources import SourceConfig, check_disjoint, make_source, question_hash, split_of
from r1jax.rewards.workers import Ending, WorkerPool
from r1jax.types import Example, Score, Status

CHAIN = {"min_terms": 2, "max_terms": 3, "min_digits": 1, "max_digits": 2}


@pytest.fixture
def library():
    return pytest.importorskip("reasoning_gym")


def test_without_the_library_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "reasoning_gym", None)
    with pytest.raises(ImportError, match=r"need the extra `tasks` \(python -m pip install 'r1jax\[tasks\]'\)"):
        reasoning_tasks.task_names()


@pytest.mark.usefixtures("library")
class TestWithLibrary:
    def test_questions_are_distinct_and_the_same_twice(self):
        first = make_examples("chain_sum", CHAIN, 300, seed=1, key=question_hash)
        again = make_examples("chain_sum", CHAIN, 300, seed=1, key=question_hash)
        assert [e.question for e in first] == [e.question for e in again]
        assert len({question_hash(e) for e in first}) == 300
        assert first[0].task == "reasoning_gym/chain_sum"
        assert "=" in first[0].question

    def test_close_seeds_share_questions_so_splits_go_by_hash(self):
        one, two = (make_examples("chain_sum", CHAIN, 50, seed=s, key=question_hash) for s in (1, 2))
        assert len({question_hash(e) for e in one} & {question_hash(e) for e in two}) > 40
        config = SourceConfig("reasoning_gym", task="chain_sum", params=CHAIN, size=200, seed=1)
        parts = {
            split: make_source(SourceConfig(**{**vars(config), "split": split, "seed": seed}))
            for seed, split in enumerate(("rl", "evaluation", "corpus"))
        }
        check_disjoint(parts)
        for split, source in parts.items():
            assert len(source) == 200
            assert {split_of(e) for e in source} == {split}

    def test_the_verifier_grades(self):
        for example in make_examples("chain_sum", CHAIN, 20, seed=3, key=question_hash):
            assert verify(example, example.answer).value == 1.0
            assert verify(example, str(int(example.answer) + 1)).value == 0.0
            assert verify(example, None).value == 0.0
            assert verify(example, "").graded

    def test_a_verifier_that_cannot_read_the_answer_grades_it_wrong(self):
        (example,) = make_examples("prime_factorization", {}, 1, seed=0, key=question_hash)
        score = verify(example, "two times three")
        assert (score.value, score.status) == (0.0, Status.GRADED)
        assert score.reason.startswith("the verifier cannot read the answer: ValueError")

    def test_a_broken_verifier_never_looks_like_a_wrong_answer(self):
        (example,) = make_examples("prime_factorization", {}, 1, seed=0, key=question_hash)
        broken = Example(**{**vars(example), "metadata": {**example.metadata, "entry": {"answer": "no factors"}}})
        score = verify(broken, "neither")  # the verifier fails on the reference answer as well
        assert score.status is Status.UNGRADABLE
        assert score.reason.startswith("the verifier failed: ValueError")

    def test_partial_credit_is_asked_for(self):
        (example,) = make_examples("spell_backward", {"min_word_len": 6}, 1, seed=0, key=question_hash)
        almost = example.answer[:-1] + "#"
        assert verify(example, almost, partial_credit=True).value not in (0.0, 1.0)
        assert verify(example, almost).value == 0.0

    def test_parameters_survive_a_trip_through_json(self):
        (example,) = make_examples("chain_sum", CHAIN, 1, seed=0, key=question_hash)
        fields = json.loads(json.dumps(vars(example)))
        assert verify(Example(**fields), example.answer).value == 1.0

    def test_unknown_tasks_and_parameters_list_close_names(self):
        with pytest.raises(ValueError, match="unknown reasoning-gym task 'chain_sums'; close ones: chain_sum"):
            make_source(SourceConfig("reasoning_gym", task="chain_sums", size=1))
        with pytest.raises(ValueError, match="unknown reasoning-gym task ''; see task_names"):
            make_source(SourceConfig("reasoning_gym", size=1))
        with pytest.raises(ValueError, match=r"no parameter 'min_term'; close ones: min_terms.*allowed: min_terms"):
            make_examples("chain_sum", {"min_term": 2}, 1, 0, key=question_hash)
        with pytest.raises(ValueError, match=r"refuses the parameters \{'min_terms': -1\}: min_terms must be positive"):
            make_examples("chain_sum", {"min_terms": -1}, 1, 0, key=question_hash)

    @pytest.mark.parametrize("task", ["countdown", "n_queens", "number_sorting", "puzzle24", "simple_integration"])
    def test_a_task_whose_verifier_runs_answers_is_refused(self, task):
        with pytest.raises(ValueError, match=f"task '{task}': its verifier runs text as a program"):
            make_source(SourceConfig("reasoning_gym", task=task, size=1))

    def test_such_a_task_cannot_hide_in_another(self):
        parts = [{"name": "countdown", "weight": 1.0, "config": {}}]
        with pytest.raises(ValueError, match="task 'composite': its verifier runs text as a program"):
            make_source(SourceConfig("reasoning_gym", task="composite", params={"datasets": parts}, size=1))

    def test_a_verifier_cannot_change_the_question(self, monkeypatch):
        (example,) = make_examples("chain_sum", CHAIN, 1, seed=0, key=question_hash)

        class Careless:
            def score_answer(self, answer, entry):
                entry["answer"] = answer
                return 1.0

        monkeypatch.setattr(reasoning_tasks, "_verifier", lambda name, params: Careless())
        before = json.dumps(example.metadata["entry"], default=str)
        verify(example, "8")
        assert json.dumps(example.metadata["entry"], default=str) == before

    def test_more_questions_than_there_are_is_an_error(self):
        tiny = {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1}
        with pytest.raises(ValueError, match=r"size: 900 distinct questions of 'chain_sum' asked, found only \d+"):
            make_examples("chain_sum", tiny, 900, seed=0, key=question_hash)
        with pytest.raises(ValueError, match="size: 0 questions"):
            make_source(SourceConfig("reasoning_gym", task="chain_sum"))

    @pytest.mark.parametrize("task", ["chain_sum", "rearc", "prime_factorization", "spell_backward"])
    def test_a_worker_says_the_same(self, task):
        (example,) = make_examples(task, {}, 1, seed=0, key=question_hash)
        for answer in (example.answer, example.answer[:-1] + "#", "7", None):
            for partial_credit in (True, False):
                sent = json.loads(json.dumps(worker_arguments(example, answer, partial_credit)))
                value, status, reason = json.loads(json.dumps(grade_in_worker(*sent)))
                assert Score(value, Status(status), reason) == verify(example, answer, partial_credit)
        assert verify(example, example.answer).value == 1.0

    def test_a_verifier_without_end_is_ended(self):
        (example,) = make_examples("coin_flip", {}, 1, seed=0, key=question_hash)
        with WorkerPool(grade_in_worker, size=1, timeout_seconds=3.0) as pool:
            answers = [example.answer, "1e999999999", example.answer]
            first, endless, last = pool.map(worker_arguments(example, answer) for answer in answers)
        assert first.value == last.value == [1.0, "graded", ""]
        assert endless.ending is Ending.TIMED_OUT

    def test_an_example_of_another_source_is_refused(self):
        with pytest.raises(ValueError, match="example 'a' of task 'chain_sum' is not one of reasoning-gym"):
            verify(Example("a", "q", "1", "chain_sum"), "1")
