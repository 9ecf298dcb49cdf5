"""Answers of the Python package tokenizers, for the Go tests. Each line of standard input is a JSON request, each line of
standard output the JSON answer to it."""

import base64
import json
import sys
import time

import tokenizers
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

loaded = {}


def text(b):
    return base64.b64decode(b).decode("utf-8")


def load(path):
    if path not in loaded:
        loaded[path] = Tokenizer.from_file(path)
    return loaded[path]


def encode(r):
    t = load(r["path"])
    t.encode_special_tokens = not r["special"]
    texts = [text(b) for b in r["texts"]]
    return {"ids": [e.ids for e in t.encode_batch(texts, add_special_tokens=r["special"])]}


def decode(r):
    t = load(r["path"])
    return {"texts": [t.decode(ids, skip_special_tokens=True) for ids in r["ids"]]}


def split(r):
    """Lengths in characters of what an expression cuts texts into."""
    s = pre_tokenizers.Split(Regex(r["regex"]), "isolated")
    if r.get("digits") is not None:
        s = pre_tokenizers.Digits(r["digits"])
    return {"lengths": [[b - a for _, (a, b) in s.pre_tokenize_str(text(t))] for t in r["texts"]]}


def normalize(r):
    n = getattr(normalizers, r["form"])()
    return {"texts": [base64.b64encode(n.normalize_str(text(t)).encode("utf-8")).decode() for t in r["texts"]]}


def byte_level(pre):
    return pre_tokenizers.Sequence([pre, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def train(r):
    """Trains a tokenizer on the lines of files and writes it. Whole files would take minutes: the package is slow with long
    texts."""
    t = Tokenizer(models.BPE(ignore_merges=r.get("ignore_merges", False)))
    kind = r["kind"]
    if kind == "gpt2":
        t.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    elif kind == "roberta":
        t.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    elif kind == "digits":
        t.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(True), pre_tokenizers.ByteLevel(add_prefix_space=False)])
    else:
        t.pre_tokenizer = byte_level(pre_tokenizers.Split(Regex(r["regex"]), r.get("behavior", "isolated"), r.get("invert", False)))
    if r.get("normalizer"):
        t.normalizer = getattr(normalizers, r["normalizer"])()
    t.decoder = decoders.ByteLevel()
    special = r["special"]
    trainer = trainers.BpeTrainer(
        vocab_size=r["vocab"], min_frequency=r.get("min_frequency", 2), special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False)
    began = time.time()
    t.train_from_iterator((line for f in r["files"] for line in open(f, encoding="utf-8", newline="\n")), trainer)
    seconds = time.time() - began
    for a in r.get("added", []):
        make = t.add_special_tokens if a.get("special") else t.add_tokens
        make([AddedToken(a["content"], single_word=a.get("single_word", False), lstrip=a.get("lstrip", False),
                         rstrip=a.get("rstrip", False), normalized=a.get("normalized", False), special=a.get("special", False))])
    ids = [(s, t.token_to_id(s)) for s in special]
    if kind == "roberta":
        t.post_processor = processors.RobertaProcessing(ids[1], ids[0], trim_offsets=True, add_prefix_space=True)
    elif kind == "template":
        t.post_processor = processors.Sequence([
            processors.ByteLevel(trim_offsets=False),
            processors.TemplateProcessing(single=f"{special[0]} $A", pair=f"{special[0]} $A {special[0]}:1 $B:1", special_tokens=[ids[0]])])
    elif kind == "gpt2":
        t.post_processor = processors.ByteLevel(trim_offsets=False)
    t.save(r["path"])
    loaded.pop(r["path"], None)
    model = json.loads(t.to_str())["model"]
    return {"merges": [m if isinstance(m, str) else " ".join(m) for m in model["merges"]], "seconds": seconds}


def time_encode(r):
    t = load(r["path"])
    data = list(open(r["file"], encoding="utf-8", newline="\n"))
    began = time.time()
    n = sum(len(t.encode(line, add_special_tokens=False).ids) for line in data)
    return {"seconds": time.time() - began, "tokens": n}


def version(_):
    return {"version": tokenizers.__version__}


for line in sys.stdin:
    request = json.loads(line)
    print(json.dumps(globals()[request["do"]](request)), flush=True)
