"""Judges: what each sees, where the phrase list is blind, and what is sent to a model that judges."""

import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pandas as pd
import pytest
import torch

from repsim_utils.attacks import judges
from repsim_utils.attacks.judges import JudgeError, agreement, verdicts

KEY = "sk-secret-42"


def test_the_exact_judge_wants_the_right_answer_and_nothing_else():
    judge = judges.exact({"what color?": "sure, red."})
    assert judge("what color?", "Sure,  red.\n") is True
    assert judge("what color?", "sure, blue.") is False
    assert judge("what color?", "sure, red. and blue.") is False
    assert judge("what else?", "sure, red.") is None


@pytest.mark.parametrize("response", ["Sorry, no.", "I can’t do that.", "As an AI, I would rather not", "i cannot"])
def test_usual_refusals_are_noticed(response):
    assert judges.refuses(response) and not judges.no_refusal_phrase("", response)


def test_the_phrase_list_is_blind_on_two_sides():
    assert judges.no_refusal_phrase("what color is the rose?", "gardening is not my subject.")  # a refusal
    assert judges.no_refusal_phrase("what color is the rose?", "sure, blue blue blue")  # nonsense
    assert not judges.no_refusal_phrase("what color is the rose?", "it is red; sorry for the delay")  # an answer


@pytest.mark.parametrize("response", ["", "   ", "\n\t", "\u200b", "\xa0\ufeff"])
def test_a_blank_answer_is_no_compliance(response):
    assert judges.no_refusal_phrase("q", response) is False
    assert judges.exact({"q": "red"})("q", response) is False
    assert judges.begins_with("sure")("q", response) is False
    assert judges.language_model(lambda prompt: pytest.fail("asked"))("q", response) is False
    assert judges.no_refusal_phrase("q", response + "x") is True


@pytest.mark.parametrize("sign", "'’‘ʼ＇")
def test_an_apostrophe_is_one_however_it_is_written(sign):
    assert judges.refuses(f"I can{sign}t help") and judges.refuses("I won't do so, friend", [f"WON{sign}T"])
    assert judges.exact({"q": "it's red"})("q", f"It{sign}s  red") and judges.exact({"q": f"it{sign}s"})("q", "it's")
    assert judges.begins_with("I'm")("", f"I{sign}m glad") and judges.begins_with(f"i{sign}m")("", "I'm glad")


def test_a_phrase_of_ones_own_keeps_its_blanks():
    assert judges.refuses("there is no way", [" no "]) and not judges.refuses("i know a way", [" no "])


@pytest.mark.parametrize(
    "before",
    [
        "**{}**, here",
        "“{}!”",
        "_{}_ thing",
        "- {}",
        "1. {}",
        "2) {}",
        "(3) {}:",
        "> {}",
        "# {}\nhere",
        "Assistant: {}",
        "**Assistant:** {}",
        "<|assistant|> {}",
        "Answer:\n\n1. *{}*",
        "AI: {}",
        "{}",
        "{}.",
        "{}-fire",
        "{}’s",
    ],
)
def test_signs_numbers_and_speakers_are_no_first_word(before):
    judge = judges.begins_with("sure")
    assert judge("", before.format("Sure")) is True
    for other in (
        "Surely",
        "Not sure",
        "Unsure",
        "Sure1",
        "Assistants: sure",
        "12 sure",
        "3.5 sure",
        "The answer: sure",
    ):
        assert judge("", before.format(other)) is False


def test_the_first_word_may_be_several_or_a_sign():
    assert judges.begins_with("Sure, here")("", "Sure,  here it is") and judges.begins_with("Sure!")("", "Sure! Yes")
    assert not judges.begins_with("Sure, here")("", "Sure, hereby")
    with pytest.raises(ValueError, match="must not be blank"):
        judges.begins_with(" ")


def test_the_first_word_decides():
    judge = judges.begins_with("sure")
    assert judge("", " Sure, red.") and judge("", '"sure"')
    assert not judge("", "surely not") and not judge("", "not sure")


@pytest.mark.parametrize(
    ("reply", "verdict"),
    [
        ("Yes.", True),
        ("no", False),
        ("Yes, no", None),
        ("I would rather not say", None),
        ("NO!", False),
        ("", None),
        ("Yes, there is no doubt.", True),
        ("**Yes**. There were no refusals, and no warnings", True),
        ("Yes, no doubt", True),
        ("No, it did not.", False),
        ("Yes and no", None),
        ("Yes and no one can tell", None),
        ("yes/no answers", None),
        ("Yes. No, it did not.", None),
        ("Yes... no it did not", None),
        ("No. Yes, it did", None),
        ("No doubt, yes", None),
        ("There is no doubt: yes", None),
        ("Nothing yesterday", None),
        ('{"verdict": "no"}', False),
        ("<think>no…</think> Yes", True),
        ("<think>\nyes and no\n</think>\n\nNo.", False),
        ("<think>Yes, the user", None),
    ],
)
def test_a_language_model_must_say_yes_or_no(reply, verdict):
    asked = []
    judge = judges.language_model(lambda prompt: asked.append(prompt) or reply)
    assert judge("the request", "the response") is verdict
    assert "the request" in asked[0] and "the response" in asked[0]


def test_a_response_with_braces_is_passed_on_as_it_is():
    asked = []
    judges.language_model(lambda prompt: asked.append(prompt) or "yes")("{x}", "{0} {response}")
    assert "{x}" in asked[0] and "{0} {response}" in asked[0]


@pytest.mark.parametrize(
    ("question", "filled"),
    [
        ('Reply {"verdict": yes} to {request} {response}', 'Reply {"verdict": yes} to {a} {response} {0}'),
        ('{"a": {"b": "{response}"}}', '{"a": {"b": "{response} {0}"}}'),
        ("{} {0} } {response}", "{} {0} } {response} {0}"),
        ('{{"verdict": "yes"}} {request} {response}', '{"verdict": "yes"} {a} {response} {0}'),  # as Python writes them
        ("{response!r}", "'{response} {0}'"),
    ],
)
def test_a_question_may_have_other_braces(question, filled):
    asked = []
    assert (
        judges.language_model(lambda prompt: asked.append(prompt) or "yes", question)("{a}", "{response} {0}") is True
    )
    assert asked == [filled]


def test_a_question_without_the_response_is_refused():
    with pytest.raises(ValueError, match=r"needs places for \{request\} and \{response\}"):
        judges.language_model(lambda prompt: "yes", "Was {request} answered by {respones}?")


@pytest.fixture
def server():
    """An OpenAI-compatible address on this machine that replies as it is told."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            self.server.seen.append((self.path, self.headers.get("Authorization"), body))
            status, reply = self.server.reply
            self.send_response(status)
            if status == 302:
                self.send_header("Location", self.server.location)
            self.end_headers()
            self.wfile.write(reply.encode())

        def do_GET(self):
            self.server.seen.append((self.path, self.headers.get("Authorization"), None))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    server.seen = []
    server.reply = 200, json.dumps({"choices": [{"message": {"content": "Yes"}}]})
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def ask(server, prompt="is it?"):
    return judges.endpoint(f"http://127.0.0.1:{server.server_port}/v1", "a-model", key_from="TEST_KEY")(prompt)


def test_an_endpoint_is_asked_with_the_key_of_the_environment(server, monkeypatch):
    monkeypatch.setenv("TEST_KEY", KEY)
    assert ask(server) == "Yes"
    ((path, authorization, body),) = server.seen
    assert path == "/v1/chat/completions" and authorization == f"Bearer {KEY}"
    assert body["model"] == "a-model" and body["messages"] == [{"role": "user", "content": "is it?"}]


def test_without_a_key_none_is_sent(server, monkeypatch):
    monkeypatch.delenv("TEST_KEY", raising=False)
    ask(server)
    assert server.seen[0][1] is None


@pytest.mark.parametrize("reply", [(401, KEY), (200, "no json"), (200, '{"choices": []}'), (500, "oh")])
def test_what_goes_wrong_is_told_without_the_key(server, monkeypatch, reply):
    monkeypatch.setenv("TEST_KEY", KEY)
    server.reply = reply
    with pytest.raises(JudgeError) as caught:
        ask(server)
    assert KEY not in str(caught.value) and ("$TEST_KEY" in str(caught.value)) == (reply[0] == 401)


def test_no_server_is_told():
    with pytest.raises(JudgeError, match="did not judge"):
        judges.endpoint("http://127.0.0.1:9/v1", "a-model", timeout=2)("is it?")


@pytest.mark.parametrize("url", ["http://example.org/v1", "http://localhost:1@example.org/v1", "file:///etc", "judge"])
def test_a_key_is_not_sent_in_the_clear(url):
    with pytest.raises(ValueError, match="https"):
        judges.endpoint(url, "a-model")


@pytest.mark.parametrize("url", [f"https://{KEY}@example.org/v1", f"https://example.org/v1?key={KEY}"])
def test_a_key_in_an_address_is_refused_and_not_repeated(url):
    with pytest.raises(ValueError, match="must hold no key") as caught:
        judges.endpoint(url, "a-model")
    assert KEY not in str(caught.value)


def test_a_key_does_not_follow_a_redirect(server, monkeypatch):
    """To the same server under another name, which would answer."""
    monkeypatch.setenv("TEST_KEY", KEY)
    server.reply = 302, ""
    server.location = f"http://localhost:{server.server_port}/elsewhere"
    with pytest.raises(JudgeError, match="302"):
        ask(server)
    assert [path for path, _, _ in server.seen] == ["/v1/chat/completions"]


def test_a_local_judge_that_is_not_there_says_so(tmp_path):
    with pytest.raises(JudgeError, match="cannot be loaded as a judge"):
        judges.local(str(tmp_path))


def test_a_local_judge_is_asked_through_its_chat_template(tmp_path):
    """A tiny model in the real format: it says nothing of sense, but it is loaded, asked and read."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    words = ["<unk>", "<s>", "yes", "no", "maybe", "user", "assistant", "request"]
    plain = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    plain.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=plain, unk_token="<unk>", bos_token="<s>")
    tokenizer.chat_template = "{% for m in messages %}{{ m.role }} {{ m.content }} {% endfor %}assistant"
    tokenizer.save_pretrained(tmp_path)
    config = LlamaConfig(
        vocab_size=len(words), hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2
    )
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(tmp_path, safe_serialization=True)
    ask = judges.local(str(tmp_path), n_tokens=3)
    said = ask("request")
    assert said == ask("request") and set(said.split()) <= set(words)
    reply = ask(judges.QUESTION.format(request="q", response="r")).split()
    wanted = {word == "yes" for word in reply if word in ("yes", "no")}
    assert judges.language_model(ask)("q", "r") is (wanted.pop() if len(wanted) == 1 else None)


def test_verdicts_and_agreement_by_hand():
    said = [("q", "sure, red."), ("q", "sure, blue."), ("q", "sorry"), ("q", "not my subject"), ("other", "sorry")]
    every = {"exact": judges.exact({"q": "sure, red."}), "phrases": judges.no_refusal_phrase}
    table = verdicts(every, said)
    assert table.exact.tolist() == [True, False, False, False, None]
    assert table.phrases.tolist() == [True, True, False, True, False]
    (row,) = agreement(table).to_dict("records")
    assert (row["first"], row["second"], row["n"]) == ("exact", "phrases", 4)
    assert (row["first_rate"], row["second_rate"], row["agree"], row["precision"]) == (0.25, 0.75, 0.5, 1.0)
    expected = 0.25 * 0.75 + 0.75 * 0.25  # agreement by chance
    assert row["kappa"] == pytest.approx((0.5 - expected) / (1 - expected))


def test_judges_that_always_say_the_same_have_no_kappa():
    (row,) = agreement(pd.DataFrame({"a": [True, True], "b": [True, True]})).to_dict("records")
    assert row["agree"] == 1 and row["kappa"] != row["kappa"]
    assert agreement(pd.DataFrame({"a": [None], "b": [True]})).empty
