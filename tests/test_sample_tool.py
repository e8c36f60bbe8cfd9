"""Talking with a checkpoint: what is asked of the model, where thinking ends, and what the user reads."""

from __future__ import annotations

import dataclasses
import io
import json

import gguf
import jax
import pytest
import rich.console

from r1jax.data.chat import FORMATS, Chat, Message
from r1jax.data.tokenizer import ByteTokenizer, HuggingFaceTokenizer, train_sentencepiece
from r1jax.model.presets import get_preset
from r1jax.model.transformer import init_params
from r1jax.sampling.decode import SamplingConfig
from r1jax.sampling.generation_config import GenerationDefaults, read_generation_defaults
from r1jax.sampling.sampler import Sampler, left_pad
from r1jax.sampling.speaker import Conversation, Said, Speaker
from r1jax.stages.policy import save_policy
from r1jax.weights.gguf import GGUFFile, gguf_tokenizer
from tools.sample import Screen, find_source, main

MARKERS = FORMATS["r1"].markers
BYTES = ByteTokenizer()
WORDS = ["2 + 3 = 5 so the answer is 5 é"] * 9


@pytest.fixture(scope="module")
def sp(tmp_path_factory):
    return train_sentencepiece(WORDS, tmp_path_factory.mktemp("sp") / "m.model", 292, MARKERS)


@pytest.fixture(scope="module")
def checkpoint(sp, tmp_path_factory):
    """The folder of a finished stage: a random model of one layer."""
    folder = tmp_path_factory.mktemp("stage")
    model = get_preset("tiny_dense", num_dense_layers=1, ffn_dim=64, vocab_size=sp.vocab_size, max_positions=128)
    (folder / "model.json").write_text(json.dumps(dataclasses.asdict(model)))
    sp.save(folder)
    save_policy(folder, init_params(model, jax.random.key(0)), step=1)
    return folder


class Script:
    """In place of a sampler: the tokens of each call are written down, and so are the prompts that it was given."""

    def __init__(self, *answers: list[int]):
        self.answers = list(answers)
        self.prompts: list[list[int]] = []
        self.limits: list[int] = []

    def stream(self, params, prompt, key):
        self.prompts.append(list(prompt))
        answer = self.answers.pop(0)
        for first in range(0, len(answer), 3):
            yield answer[first : first + 3]


def scripted(monkeypatch, tokenizer, *answers: list[int], stops=(), budget=None, max_new_tokens=50):
    script = Script(*answers)

    def sampler(self, length, limit):
        script.limits.append(limit)
        return script

    monkeypatch.setattr(Speaker, "_sampler", sampler)
    config = SamplingConfig(max_new_tokens, stop_tokens=stops)
    return Speaker(get_preset("tiny_dense"), {}, tokenizer, config, thinking_budget=budget), script


def said(pieces) -> list[tuple[str, str]]:
    """(kind, text) with neighbours of one kind joined."""
    joined: list[tuple[str, str]] = []
    for piece in pieces:
        if joined and joined[-1][0] == piece.kind:
            joined[-1] = (piece.kind, joined[-1][1] + piece.text)
        else:
            joined.append((piece.kind, piece.text))
    return joined


KEY = jax.random.key(3)
END = [BYTES.eos_id]


def test_thinking_is_told_apart_and_the_stop_token_is_no_text(monkeypatch):
    answer = [*BYTES.encode("hm é</think>\n\n5🤖"), *BYTES.encode("x")]
    stop = answer.pop()  # a token that has a text
    speaker, script = scripted(monkeypatch, BYTES, [*answer, stop, *BYTES.encode("never")], stops=(stop,))
    assert said(speaker.say([1, 2], KEY, thinking=True)) == [("thinking", "hm é"), ("answer", "\n\n5🤖")]
    assert script.prompts == [[1, 2]]


def test_plain_text_keeps_its_tags(monkeypatch):
    text = "<think>a</think>b"
    speaker, _ = scripted(monkeypatch, BYTES, BYTES.encode(text) + END, stops=(1,), budget=3)
    assert said(speaker.say([5], KEY, plain=True)) == [("answer", text)]


def test_an_answer_without_an_end_is_told_to_be_cut(monkeypatch):
    speaker, _ = scripted(monkeypatch, BYTES, BYTES.encode("ab</thi") + [3 + 0xE4], stops=(1,))
    assert said(speaker.say([5], KEY, thinking=True)) == [("thinking", "ab</thi\ufffd"), ("note", "cut after 8 tokens")]


def test_a_budget_closes_the_thinking_and_asks_for_the_answer(monkeypatch):
    thoughts, answer = BYTES.encode("on and on"), BYTES.encode("5 </think>")
    speaker, script = scripted(monkeypatch, BYTES, thoughts, answer + END, stops=(1,), budget=5)
    assert said(speaker.say([7, 8], KEY, thinking=True)) == [
        ("thinking", "on an"),
        ("note", "thinking stopped at its budget of 5 tokens"),
        ("answer", "5 </think>"),
    ]
    assert script.prompts == [[7, 8], [7, 8, *thoughts[:5], *BYTES.encode("\n</think>\n\n")]]
    assert script.limits == [50, 45]


def test_the_budget_counts_only_what_is_inside_the_thinking(monkeypatch):
    text = "<think>12345</think>678901234"  # the tag is seven tokens here, of which the last one opens the thinking
    for budget, stopped in ((6, True), (7, False)):
        answers = [BYTES.encode(text) + END, BYTES.encode("!") + END]
        # <think> 1 2 3 4 5 are six tokens after which the text is inside; "</think>" takes seven more until it closes.
        speaker, script = scripted(monkeypatch, BYTES, *answers, stops=(1,), budget=budget + 7 * (not stopped))
        kinds = [kind for kind, _ in said(speaker.say([5], KEY))]
        assert kinds == (["thinking", "note", "answer"] if stopped else ["thinking", "answer"])
        assert len(script.prompts) == 1 + stopped


def test_an_impossible_budget_is_refused(monkeypatch):
    for budget in (0, 50, 51):
        with pytest.raises(ValueError, match=f"thinking budget of {budget} tokens must be .* below max_new_tokens 50"):
            scripted(monkeypatch, BYTES, budget=budget)


def test_a_conversation_forgets_what_was_thought(monkeypatch, sp):
    (close,) = sp.encode("</think>")
    first = [*sp.encode("so"), close, *sp.encode("\n\n5"), sp.eos_id]
    speaker, script = scripted(monkeypatch, sp, first, first, first, stops=(sp.eos_id,))
    conversation = Conversation(Chat(sp, "r1"), speaker, KEY, system="is")
    assert said(conversation.ask("2")) == [("thinking", "so"), ("answer", "\n\n5")]
    assert conversation.messages == [Message("system", "is"), Message("user", "2"), Message("assistant", "\n\n5")]
    list(conversation.ask("3"))
    assert sp.decode(script.prompts[1]) == "is<｜User｜>2<｜Assistant｜>\n\n5<｜User｜>3<｜Assistant｜><think>\n"
    assert script.prompts[1].count(sp.eos_id) == 1
    before = conversation.messages
    with pytest.raises(ValueError, match="contains '<think>'"):
        list(conversation.ask("<think>"))
    assert conversation.messages == before
    conversation.forget()
    list(conversation.ask("4"))
    assert sp.decode(script.prompts[2]) == "is<｜User｜>4<｜Assistant｜><think>\n"


def test_what_is_said_is_what_the_sampler_draws(sp):
    model = get_preset("tiny_dense", num_dense_layers=1, ffn_dim=64, vocab_size=sp.vocab_size, max_positions=128)
    params = init_params(model, jax.random.key(0))
    config = SamplingConfig(20, temperature=0.6, top_p=0.95, regroup=3)
    prompt = Chat(sp, "r1").prompt([Message("user", "2 + 3")])
    pieces = said(Speaker(model, params, sp, config, thinking_budget=6).say(prompt.tokens, KEY, thinking=True))
    thought_key, answer_key = jax.random.split(KEY)

    def draw(tokens: list[int], key, limit: int) -> list[int]:
        limited = dataclasses.replace(config, max_new_tokens=limit)
        rollout = Sampler(model, None, limited, 64, 1).sample(params, *left_pad([tokens], 64), key[None])
        return rollout.response_tokens[0].tolist()

    thoughts = draw(list(prompt.tokens), thought_key, 20)[:6]
    assert sp.encode("</think>")[0] not in thoughts
    closed = [*prompt.tokens, *thoughts, *sp.encode("\n</think>\n\n")]
    assert pieces == [
        ("thinking", sp.decode(thoughts)),
        ("note", "thinking stopped at its budget of 6 tokens"),
        ("answer", sp.decode(draw(closed, answer_key, 14))),
        ("note", "cut after 14 tokens"),
    ]


def test_prompts_fill_the_context_and_no_more(sp):
    model = get_preset("tiny_dense", num_dense_layers=1, ffn_dim=64, vocab_size=sp.vocab_size, max_positions=100)
    params = init_params(model, jax.random.key(0))
    speaker = Speaker(model, params, sp, SamplingConfig(50), None)
    # Padding never takes room from the answer.
    shapes = [(s.prompt_width, s.cfg.max_new_tokens) for s in (speaker._sampler(n, 50) for n in (1, 64, 65, 99))]
    assert shapes == [(50, 50), (64, 36), (65, 35), (99, 1)]
    assert [speaker._sampler(n, 20).prompt_width for n in (1, 40, 64)] == [64, 64, 64]
    assert said(speaker.say([9] * 99, KEY))[-1] == ("note", "cut after 1 tokens")
    with pytest.raises(ValueError, match="the prompt has 100 tokens, the model's context 100"):
        next(speaker.say([9] * 100, KEY))


def test_defaults_come_from_generation_config_else_from_r1(tmp_path):
    assert read_generation_defaults(tmp_path) == GenerationDefaults(0.6, 0.95, ())
    (tmp_path / "released").mkdir()
    fields = {"temperature": 0.7, "top_p": None, "eos_token_id": [3, 5], "do_sample": True}
    (tmp_path / "released" / "generation_config.json").write_text(json.dumps(fields))
    assert read_generation_defaults(tmp_path) == GenerationDefaults(0.7, 0.95, (3, 5))
    (tmp_path / "generation_config.json").write_text('{"top_p": 1, "eos_token_id": 4}')
    assert read_generation_defaults(tmp_path) == GenerationDefaults(0.6, 1.0, (4,))
    (tmp_path / "generation_config.json").write_text('{"top_k": 20, "do_sample": false, "temperature": 0.6}')
    assert read_generation_defaults(tmp_path) == GenerationDefaults(0.0, 0.95, (), top_k=20)  # greedy
    (tmp_path / "generation_config.json").write_text('{"repetition_penalty": 1.05, "num_beams": 1, "min_p": null}')
    assert read_generation_defaults(tmp_path).not_applied == ("repetition_penalty = 1.05",)
    for text, message in (
        ("{", "is not JSON"),
        ('{"eos_token_id": ["x"]}', "eos_token_id has 'x', expected a number"),
        ('{"temperature": true}', "temperature has True, expected a number"),
    ):
        (tmp_path / "generation_config.json").write_text(text)
        with pytest.raises(ValueError, match=rf"generation_config\.json.* {message}"):
            read_generation_defaults(tmp_path)


def test_a_gguf_file_brings_its_chat_template(tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(["<|im_end|>", "a", "b", "ab"])
    writer.add_token_types([3, 1, 1, 1])
    writer.add_token_merges(["a b"])
    writer.add_eos_token_id(0)
    writer.add_chat_template("{{ messages[0].content }}<|im_end|>")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    tokenizer = gguf_tokenizer(GGUFFile(tmp_path / "m.gguf"))
    assert Chat(tokenizer).prompt([Message("user", "ab")]).tokens == (3, 0)
    tokenizer.save(tmp_path)
    assert HuggingFaceTokenizer.from_directory(tmp_path).chat_template == "{{ messages[0].content }}<|im_end|>"


def test_what_a_checkpoint_is_is_told_from_its_files(tmp_path):
    assert find_source("smollm2").kind == "smollm2"
    (tmp_path / "model").write_bytes(b"GGUF and more")  # whatever its name
    assert find_source(str(tmp_path / "model")).kind == "gguf"
    (tmp_path / "rl").mkdir()
    (tmp_path / "rl" / "model.json").touch()
    assert find_source(str(tmp_path / "rl")).kind == "stage"
    (tmp_path / "config.json").write_text('{"model_type": "qwen2"}')
    assert find_source(str(tmp_path)).kind == "huggingface"
    (tmp_path / "config.json").write_text('{"stage": "pipeline"}')
    with pytest.raises(ValueError, match="is the folder of a run and holds no model itself; its stages with one: rl"):
        find_source(str(tmp_path))
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config\.json is not JSON"):
        find_source(str(tmp_path))
    with pytest.raises(ValueError, match="neither a GGUF file, nor a folder"):
        find_source(str(tmp_path / "nothing"))


def run(arguments: list[str], lines: str = "") -> int:
    return main(["--temperature", "0", *arguments], io.StringIO(lines))


def test_the_tool_goes_on_from_a_prompt(checkpoint, sp, capsys):
    assert run(["--checkpoint", str(checkpoint), "--prompt", "2 + 3 = 5", "--max-new-tokens", "9"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("2 + 3 = 5")
    assert out.endswith("cut after 9 tokens\n")
    assert "thinking" not in out


def test_the_tool_chats_line_by_line_within_the_thinking_budget(checkpoint, capsys):
    budget = ["--chat", "--max-new-tokens", "12", "--thinking-budget", "4"]
    questions = "2 + 3\n\n a<think>b \n/new\n2 + 3\n" + "5 " * 140 + "\n/exit\n2\n"
    assert run(["--checkpoint", str(checkpoint), *budget], questions) == 0
    out, err = capsys.readouterr()
    assert out.count("thinking stopped at its budget of 4 tokens") == 2
    answers = out.split("thinking\n")[1:]
    assert len(answers) == 2
    assert answers[0].split("budget") == answers[1].split("budget")  # greedy, and the first one was forgotten
    assert "message 1 (user)" not in err
    first, second = err.splitlines()
    assert first.startswith("ValueError: message 3 (user) contains '<think>'")
    assert "tokens, the model's context 128: no room" in second


def test_the_tool_asks_one_question_with_defaults_of_the_checkpoint(checkpoint, capsys, monkeypatch):
    asked = []
    monkeypatch.setattr(
        Speaker, "say", lambda self, prompt, key, **_: asked.append(self._config) or [Said("answer", "5")]
    )
    path = checkpoint / "generation_config.json"
    path.write_text('{"temperature": 0.5, "eos_token_id": 7}')
    try:
        assert main(["--checkpoint", str(checkpoint), "--chat", "--prompt", "2", "--top-p", "0.8"]) == 0
    finally:
        path.unlink()
    assert capsys.readouterr().out == "5\n"
    (config,) = asked
    assert (config.temperature, config.top_p, config.stop_tokens) == (0.5, 0.8, (1, 7))


def test_what_is_said_cannot_steer_the_terminal(capsys):
    pieces = [
        Said("thinking", "\n\n[b]a[/b]"),
        Said("thinking", "\n"),
        Said("answer", "\n"),
        Said("answer", "\x1b[2J\x9b2Jé\r"),
    ]
    Screen(rich.console.Console(soft_wrap=True)).show(pieces)
    assert capsys.readouterr().out == "thinking\n[b]a[/b]\n\nanswer\n\ufffd[2J\ufffd2Jé\ufffd\n"


def test_mistakes_are_one_line(checkpoint, tmp_path, capsys):
    for arguments, message in (
        (["--checkpoint", str(tmp_path), "--prompt", "x"], "ValueError: --checkpoint: "),
        (["--checkpoint", str(checkpoint), "--chat", "--format", "own"], "ValueError: the checkpoint has no chat temp"),
        (
            ["--checkpoint", str(checkpoint), "--chat", "--format", "qwen"],
            "ValueError: the chat format qwen needs <|im",
        ),
        (["--checkpoint", str(checkpoint), "--prompt", "", "--top-p", "2"], "ValueError: top_p is 2.0"),
    ):
        assert run(arguments) == 1
        out, err = capsys.readouterr()
        assert (out, err.count("\n")) == ("", 1)
        assert err.startswith(message)
    for arguments in ([], ["--thinking-budget", "3", "--prompt", "x"], ["--chat", "--format", "alpaca"]):
        with pytest.raises(SystemExit):
            run(["--checkpoint", "smollm2", *arguments])
