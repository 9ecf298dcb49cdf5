# Answers requests of interop_test.go, one JSON object a line, with the Python package transformers on the CPU.
import json
import os
import sys

os.environ["HF_HUB_OFFLINE"] = "1"

import safetensors
import tokenizers
import torch
import transformers

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()
answers = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)  # whatever else is printed

CLASSES = {"llama": transformers.LlamaForCausalLM, "gpt2": transformers.GPT2LMHeadModel, "bert": transformers.BertForMaskedLM}
CONFIGS = {"llama": transformers.LlamaConfig, "gpt2": transformers.GPT2Config, "bert": transformers.BertConfig}


def logits(model, request):
    inputs = {"input_ids": torch.tensor(request["ids"])}
    if request.get("types"):
        inputs["token_type_ids"] = torch.tensor(request["types"])
    with torch.no_grad():
        return model.eval()(**inputs).logits.float().flatten().tolist()


def load(request):
    auto = transformers.AutoModelForMaskedLM if request["family"] == "bert" else transformers.AutoModelForCausalLM
    model, report = auto.from_pretrained(request["folder"], dtype=torch.float32, output_loading_info=True)
    odd = {k: sorted(map(str, v)) for k, v in report.items() if v}
    return {"logits": logits(model, request), "odd": json.dumps(odd) if odd else ""}


def make(request):
    torch.manual_seed(request["seed"])
    model = CLASSES[request["family"]](CONFIGS[request["family"]](**request["config"]))
    with torch.no_grad():
        for p in model.parameters():  # fresh norms and biases hide what they do
            p.add_(torch.randn_like(p) / 4)
    model = model.to(getattr(torch, request["dtype"]))
    more = {"max_shard_size": request["shard"]} if request.get("shard") else {}
    model.save_pretrained(request["folder"], **more)
    return {"logits": logits(model.float(), request)}


def tokens(request):
    tok = transformers.AutoTokenizer.from_pretrained(request["folder"])
    mask = tok.mask_token_id if tok.mask_token else None
    return {"tokens": [tok(text, add_special_tokens=False)["input_ids"] for text in request["texts"]], "mask": mask}


def version(request):
    return {"versions": {m.__name__: m.__version__.split("+")[0] for m in (torch, transformers, tokenizers, safetensors)}}


for line in sys.stdin:
    request = json.loads(line)
    print(json.dumps({"load": load, "make": make, "tokens": tokens, "version": version}[request["do"]](request)), file=answers, flush=True)
