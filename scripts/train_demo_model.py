"""Train the demo model that ships with HyperFlexis, from the Python standard library alone.

What it is: a byte-level BPE tokenizer and a 3.5-million-parameter Llama-architecture model, both learned
from the ``.py`` files of the running interpreter's standard library and from chat samples cut out of the
same files (a request built from a function's docstring, answered by its code). The result is a complete
Hugging Face directory of about 7 MB, small enough to live inside the package, so that a fresh checkout
can serve real tokens without downloading anything.

What it is not: a useful assistant. It writes text that has the shape of Python; it does not know what
the code should do, and it knows nothing outside the standard library.

What it took: 51 minutes for 2,600 steps on one core of a shared server CPU with AVX-512 and bfloat16
instructions (3,100 tokens per second; 3,900 while the machine was quiet). It uses no GPU. It needs
PyTorch 2.9 or later, for the Muon optimizer, and Transformers.

Everything is seeded: the same Python version and the same arguments give the same tokenizer and the same
order of batches. The training state goes to ``--scratch`` every few minutes. Run the same command again to
continue from there, or add ``--export-now`` to write out the last state as it stands.

    python scripts/train_demo_model.py --scratch /tmp/demo-model
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import json
import math
import platform
import random
import re
import shutil
import sysconfig
import tempfile
import textwrap
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.nn.functional import cross_entropy
from transformers import LlamaConfig, LlamaForCausalLM

END, USER, ASSISTANT, SYSTEM, PAD = "<|end|>", "<|user|>", "<|assistant|>", "<|system|>", "<|pad|>"
SPECIAL_TOKENS = [END, USER, ASSISTANT, SYSTEM, PAD]  # their ids are 0 to 4, in this order
END_ID, PAD_ID = SPECIAL_TOKENS.index(END), SPECIAL_TOKENS.index(PAD)

CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{%- if message['role'] not in ['system', 'user', 'assistant'] -%}"
    "{{- raise_exception('Unknown role ' ~ message['role'] ~ ': use system, user or assistant.') -}}"
    "{%- endif -%}"
    "{{- '<|' ~ message['role'] ~ '|>' ~ message['content'] | trim ~ '<|end|>' -}}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|assistant|>' -}}{%- endif -%}"
)

# How Llama 3 splits text before BPE. A run of spaces keeps its last space for the word that follows, so
# the indentation of a line and its first word (" return") become one token each.
SPLIT_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)

CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 3072,
    "hidden_size": 256,
    "intermediate_size": 448,
    "num_hidden_layers": 5,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "hidden_act": "silu",
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "attention_bias": False,
    "mlp_bias": False,
    "tie_word_embeddings": True,
    "initializer_range": 0.02,
    "bos_token_id": None,
    "eos_token_id": END_ID,
    "pad_token_id": PAD_ID,
    "torch_dtype": "bfloat16",
}

PEAK_LR, FINAL_LR, WARMUP_STEPS = 8e-3, 1e-4, 100
CHECKPOINT_EVERY = 250
MICRO_TOKENS = 2048  # what goes through the model at once: small enough for the activations to stay in cache


# --- the corpus ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SourceFile:
    name: str  # relative to the standard library's folder, with forward slashes
    text: str

    @property
    def held_out(self) -> bool:
        """About 3 % of the files, chosen by name so that the choice does not depend on the others."""
        return int(hashlib.sha256(self.name.encode()).hexdigest(), 16) % 100 < 3

    @property
    def module(self) -> str:
        return self.name.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


SKIPPED_FOLDERS = {"site-packages", "test", "tests", "idlelib", "pydoc_data"}
# Generated tables rather than code, and the record of how this interpreter was built.
SKIPPED_FILES = re.compile(r"encodings/(cp|iso|mac_|koi|kz|ptcp|tis|hp_).*|_sysconfigdata.*|msilib/.*")


def standard_library() -> list[SourceFile]:
    root = Path(sysconfig.get_path("stdlib"))
    files = []
    for path in sorted(root.rglob("*.py")):
        name = path.relative_to(root).as_posix()
        if SKIPPED_FOLDERS & set(path.relative_to(root).parts) or SKIPPED_FILES.match(name):
            continue
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue  # a handful of old files in other encodings
        if text.strip():
            files.append(SourceFile(name, text))
    return files


# --- chat samples -------------------------------------------------------------------------------------

Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef

# Docstrings that begin with one of these read well inside "Write a function that returns ..."
IMPERATIVE = re.compile(
    "(Add|Build|Call|Change|Check|Clear|Close|Compare|Compute|Convert|Copy|Create|Decode|Delete|Determine|Encode"
    "|Execute|Extract|Find|Format|Generate|Get|Insert|Load|Make|Open|Parse|Print|Process|Produce|Put|Raise|Read"
    "|Receive|Register|Remove|Replace|Reset|Return|Run|Send|Set|Split|Start|Stop|Test|Turn|Wait|Write)( |$)"
)
SYSTEM_PROMPTS = ["You are a helpful assistant.", "You write Python code.", "You are a Python programmer."]
CHAT_SHARE = 0.22  # of the characters of the training text
LONGEST_ANSWER = 1800  # characters; about 500 tokens


def chat(*turns: str, system: str | None = None) -> str:
    """A conversation in the chat template's format; the turns alternate between user and assistant."""
    head = f"{SYSTEM}{system}{END}" if system else ""
    # An answer that continues a piece of code may begin with indentation: only line breaks go at the front.
    bodies = [turn.lstrip("\n").rstrip() for turn in turns]
    return head + "".join(f"{(USER, ASSISTANT)[i % 2]}{body}{END}" for i, body in enumerate(bodies))


def third_person(sentence: str) -> str:
    """'Return the length.' becomes 'returns the length.'"""
    verb, _, rest = sentence.partition(" ")
    verb = verb.lower()
    if verb.endswith(("s", "sh", "ch", "x")):
        verb += "es"
    elif verb.endswith("y") and verb[-2] not in "aeiou":
        verb = verb[:-1] + "ies"
    else:
        verb += "s"
    return f"{verb} {rest}"


def first_sentence(docstring: str) -> str:
    paragraph = " ".join(docstring.partition("\n\n")[0].split())
    match = re.match(r".+?[.?!](?=\s|$)", paragraph)
    return match.group() if match else paragraph


def signature(node: Definition) -> str:
    if isinstance(node, ast.ClassDef):
        return node.name
    arguments = re.sub(r"^(self|cls)(, |$)", "", ast.unparse(node.args))
    return f"{node.name}({arguments})"


def source_of(node: Definition, lines: list[str]) -> str:
    first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
    return textwrap.dedent("\n".join(lines[first - 1 : node.end_lineno])).strip()


def request_for_code(node: Definition, sentence: str, rng: random.Random) -> str:
    kind = "class" if isinstance(node, ast.ClassDef) else "function"
    if not sentence:
        name = signature(node)
        return rng.choice([f"Write a {kind} `{name}`.", f"Write the {kind} `{name}`", f"Implement `{name}`."])
    requests = [
        f"Write a {kind} `{signature(node)}`: {sentence}",
        f"Write a Python {kind} `{node.name}`. {sentence}",
        f"Implement `{signature(node)}`. {sentence}",
    ]
    if IMPERATIVE.match(sentence):
        plain = sentence.rstrip(".")
        requests += [
            f"Write a {kind} that {third_person(plain)}.",
            f"Write a Python {kind} that {third_person(plain)}",
            f"Write a {kind} to {plain[0].lower()}{plain[1:]}.",
            f"How do I {plain[0].lower()}{plain[1:]}?",
        ]
    return rng.choice(requests)


def chat_samples(file: SourceFile, rng: random.Random) -> Iterator[str]:
    try:
        tree = ast.parse(file.text)
    except SyntaxError:
        return  # lib2to3 keeps some Python 2
    lines = file.text.splitlines()
    for node in ast.walk(tree):
        if not isinstance(node, Definition):
            continue
        code, docstring = source_of(node, lines), ast.get_docstring(node) or ""
        if node.name.startswith("__") or not 40 <= len(code) <= LONGEST_ANSWER:
            continue
        if not docstring and rng.random() < 0.5:
            continue  # there are more of these than of the others, and they teach less
        sentence = first_sentence(docstring) if docstring else ""
        system = rng.choice(SYSTEM_PROMPTS) if rng.random() < 0.15 else None
        ask = request_for_code(node, sentence if len(sentence) <= 200 else "", rng)
        explain = rng.choice(["Explain what `{}` does.", "What does `{}` do?"]).format(
            rng.choice([node.name, f"{file.module}.{node.name}"])
        )
        draw = rng.random()
        if docstring and draw < 0.25:
            yield chat(explain, docstring, system=system)
        elif docstring and draw < 0.35:
            yield chat(ask, code, explain, docstring, system=system)
        elif draw < 0.45 and code.count("\n") >= 4:
            head, rest = split_lines(code, rng.randint(1, code.count("\n") // 2))
            yield chat(f"Continue this code:\n{head}", rest, system=system)
        else:
            yield chat(ask, code, system=system)


def split_lines(text: str, count: int) -> tuple[str, str]:
    lines = text.split("\n")
    return "\n".join(lines[:count]), "\n".join(lines[count:])


def training_texts(files: list[SourceFile], seed: int) -> list[str]:
    """Whole files and chat samples in a random order; each text ends with the end token."""
    rng = random.Random(seed)
    sources = [file.text + END for file in files]
    samples = [sample for file in files for sample in chat_samples(file, rng)]
    rng.shuffle(samples)
    room = CHAT_SHARE / (1 - CHAT_SHARE) * sum(map(len, sources))
    chosen = []
    for sample in samples:
        room -= len(sample)
        if room < 0:
            break
        chosen.append(sample)
    texts = sources + chosen
    rng.shuffle(texts)
    return texts


# --- tokenizer ----------------------------------------------------------------------------------------


def train_tokenizer(files: list[SourceFile]) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT_PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=CONFIG["vocab_size"],
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator((file.text for file in files), trainer)
    return tokenizer


def encode(tokenizer: Tokenizer, texts: list[str], seed: int) -> np.ndarray:
    """One long row of token ids.

    The texts are cut at random places, and the pieces encoded on their own. A prompt may end after a
    space or in the middle of a word, where an encoder that sees the whole line would never end a token;
    the cuts make such ends familiar to the model.
    """
    rng = random.Random(seed)
    white_space = re.compile(r"\s+")
    pieces = []
    for text in texts:
        start = 0
        while start < len(text):
            stop = start + int(rng.expovariate(1 / 600)) + 1
            if rng.random() < 0.5:  # move the cut to just after the next white space
                space = white_space.search(text, stop)
                stop = space.end() if space else len(text)
            pieces.append(text[start:stop])
            start = stop
    encodings = tokenizer.encode_batch(pieces)
    return np.concatenate([np.array(e.ids, dtype=np.uint16) for e in encodings])


# --- training -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Stage:
    """A part of the training. Short windows are cheap, and most of what there is to learn is local."""

    length: int  # tokens in a window
    windows: int  # windows in a batch
    share: float  # of all steps


STAGES = [Stage(256, 8, 0.20), Stage(256, 16, 0.60), Stage(512, 8, 0.12), Stage(1024, 4, 0.08)]


def batches(tokens: np.ndarray, steps: int, seed: int) -> Iterator[torch.Tensor]:
    """The batch of each step; the same for the same seed and number of steps."""
    rng = np.random.default_rng(seed)
    for stage in STAGES:
        starts = np.empty(0, dtype=np.int64)
        for _ in range(round(stage.share * steps)):
            if len(starts) < stage.windows:
                # A new pass over the corpus, with the window borders somewhere else.
                starts = np.arange(rng.integers(stage.length), len(tokens) - stage.length, stage.length)
                rng.shuffle(starts)
            chosen, starts = starts[: stage.windows], starts[stage.windows :]
            rows = [tokens[start : start + stage.length + 1] for start in chosen]
            yield torch.from_numpy(np.stack(rows).astype(np.int64))


def learning_rate(step: int, steps: int) -> float:
    """Linear warm-up, then a cosine."""
    if step < WARMUP_STEPS:
        return PEAK_LR * (step + 1) / WARMUP_STEPS
    progress = (step - WARMUP_STEPS) / max(1, steps - WARMUP_STEPS)
    return FINAL_LR + (PEAK_LR - FINAL_LR) * (1 + math.cos(math.pi * progress)) / 2


def new_model() -> LlamaForCausalLM:
    # At these sizes on a CPU plain matrix products beat the fused attention, most of all backwards.
    settings = {**CONFIG, "torch_dtype": "float32", "attn_implementation": "eager"}
    return LlamaForCausalLM(LlamaConfig(**settings))


def loss_of(model: LlamaForCausalLM, batch: torch.Tensor) -> torch.Tensor:
    """The mean loss in nats per token. The products run in bfloat16, the weights stay in float32."""
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model(batch[:, :-1], use_cache=False).logits
    return cross_entropy(logits.flatten(0, 1).float(), batch[:, 1:].flatten())


@dataclass
class Progress:
    """How far a training has come; stored next to the weights."""

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0


Optimizers = list[torch.optim.Optimizer]


def new_optimizers(model: LlamaForCausalLM) -> Optimizers:
    """Muon for the matrices inside the layers, AdamW for the embedding and the norms.

    After 250 steps of 2048 tokens Muon stood at a training loss of 4.4, AdamW alone at 5.3: worth a step that
    takes 0.1 s longer. Its updates are scaled to the size of AdamW's, so one learning rate fits both.
    """
    layers = [p for p in model.model.layers.parameters() if p.ndim == 2]
    others = [p for name, p in model.named_parameters() if p.ndim == 1 or "embed_tokens" in name]
    return [
        torch.optim.Muon(layers, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, betas=(0.9, 0.95), weight_decay=0.0, fused=True),
    ]


def save_checkpoint(path: Path, model: LlamaForCausalLM, optimizers: Optimizers, progress: Progress) -> None:
    state = {
        "model": model.state_dict(),
        "optimizers": [optimizer.state_dict() for optimizer in optimizers],
        "progress": vars(progress),
    }
    # Renamed when complete, so that a run cut short while saving still has the state before.
    torch.save(state, path.with_suffix(".tmp"))
    path.with_suffix(".tmp").replace(path)


def train(tokens: np.ndarray, steps: int, seed: int, checkpoint: Path) -> None:
    torch.manual_seed(seed)
    model, progress = new_model(), Progress()
    optimizers = new_optimizers(model)
    if checkpoint.exists():
        state = torch.load(checkpoint)
        model.load_state_dict(state["model"])
        for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        progress = Progress(**state["progress"])
        print(f"continuing after step {progress.step} of {checkpoint}")

    recent: list[float] = []
    for step, batch in enumerate(batches(tokens, steps, seed)):
        if step < progress.step:
            continue
        began = time.monotonic()
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(step, steps)
        micro_batches = torch.split(batch, max(1, MICRO_TOKENS // (batch.shape[1] - 1)))
        for micro_batch in micro_batches:
            loss = loss_of(model, micro_batch) / len(micro_batches)
            loss.backward()  # type: ignore[no-untyped-call]
            recent.append(loss.item() * len(micro_batches))
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        progress.step = step + 1
        progress.tokens += batch.shape[0] * (batch.shape[1] - 1)
        progress.seconds += time.monotonic() - began
        if progress.step % 50 == 0:
            speed = progress.tokens / progress.seconds
            print(f"step {progress.step:5d}/{steps}  loss {np.mean(recent):.3f}  {speed:.0f} tokens/s")
            recent.clear()
        if progress.step % CHECKPOINT_EVERY == 0:
            save_checkpoint(checkpoint, model, optimizers, progress)
    save_checkpoint(checkpoint, model, optimizers, progress)


# --- looking at the result ----------------------------------------------------------------------------


@torch.inference_mode()
def held_out_loss(
    model: LlamaForCausalLM,
    tokenizer: Tokenizer,
    files: list[SourceFile],
) -> tuple[float, float]:
    """Nats per token and bits per byte over whole files, in windows of 1024 tokens."""
    nats, tokens, size = 0.0, 0, 0
    for file in files:
        ids = torch.tensor([END_ID, *tokenizer.encode(file.text + END).ids])
        for start in range(0, len(ids) - 1, 1024):
            window = ids[start : start + 1025]
            nats += loss_of(model, window[None]).item() * (len(window) - 1)
        tokens += len(ids) - 1
        size += len(file.text.encode())
    return nats / tokens, nats / math.log(2) / size


def complete(model: LlamaForCausalLM, tokenizer: Tokenizer, prompt: str, new_tokens: int = 120) -> str:
    """Sample a continuation the way generation_config.json says."""
    torch.manual_seed(0)
    ids = torch.tensor([tokenizer.encode(prompt).ids])
    output = model.generate(  # type: ignore[misc]
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=new_tokens,
        do_sample=True,
        temperature=GENERATION["temperature"],
        top_p=GENERATION["top_p"],
        eos_token_id=END_ID,
        pad_token_id=PAD_ID,
    )
    return str(tokenizer.decode(output[0, ids.shape[1] :].tolist(), skip_special_tokens=True))


# --- the Hugging Face directory -----------------------------------------------------------------------

GENERATION: dict[str, Any] = {
    "do_sample": True,
    "temperature": 0.7,
    "top_p": 0.95,
    "eos_token_id": END_ID,
    "pad_token_id": PAD_ID,
}

TOKENIZER_CONFIG: dict[str, Any] = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "model_max_length": CONFIG["max_position_embeddings"],
    "clean_up_tokenization_spaces": False,
    "eos_token": END,
    "pad_token": PAD,
    "additional_special_tokens": [USER, ASSISTANT, SYSTEM],
    "chat_template": CHAT_TEMPLATE,
}

CODE_PROMPT = "def fibonacci(n):\n"
CHAT_REQUEST = "Write a function that returns the length of a file."

MODEL_CARD = """\
---
license: apache-2.0
pipeline_tag: text-generation
library_name: transformers
---

# HyperFlexis demo model

A very small Llama-architecture language model that comes with HyperFlexis, so that a fresh checkout can
serve real tokens, and be tested and measured, without downloading anything.

It writes text with the shape of Python: plausible indentation, names, docstrings and idioms. **It does not
solve problems.** The code it writes is rarely correct and often refers to names that do not exist. It knows
nothing but the Python standard library and speaks no language but the English of its docstrings. Its output
is there to be served, not to be used.

|  |  |
| --- | --- |
| Parameters | {parameters:,}, stored as bfloat16 ({megabytes:.2f} MB) |
| Architecture | `LlamaForCausalLM`: {num_hidden_layers} layers, width {hidden_size}, \
{num_attention_heads} query and {num_key_value_heads} key-value heads of {head_dim}, \
MLP {intermediate_size}, tied embeddings |
| Context | {max_position_embeddings} positions; trained on windows of up to {longest_window} tokens |
| Tokenizer | byte-level BPE, {vocab_size} tokens, {bytes_per_token:.2f} bytes per token on held-out code |
| Held-out loss | {loss:.3f} nats per token, {bits:.3f} bits per byte ({held_out} files never trained on) |

## Training

- **Data**: the `.py` files of the standard library of CPython {python}, without tests, IDLE, generated
  tables and third-party packages: {files} files, {corpus_megabytes:.1f} MB. About {chat_percent:.0f} % of
  the training text are chat samples made from the same files: a request built from a function's name and
  docstring, answered by its code or its docstring. About 3 % of the files are held out.
- **Recipe**: Muon for the matrices of the layers, AdamW for the embedding and the norms; peak learning rate
  {peak_lr:g} after {warmup} warm-up steps, cosine down to {final_lr:g}, gradient norm clipped at 1, bfloat16
  products with float32 weights; {steps:,} steps, {tokens_millions:.1f} million tokens ({epochs:.1f} passes),
  in windows of {windows} tokens.
- **Cost**: {minutes:.0f} minutes on one core of a shared server CPU, {speed:,.0f} tokens per second; no GPU.

`scripts/train_demo_model.py` does all of this, from the tokenizer to this page.

## Chat format

`<|system|>...<|end|><|user|>...<|end|><|assistant|>...<|end|>`, with the system message optional. The
template is in `tokenizer_config.json`. `<|end|>` also ends a file in plain completion.

## Samples

Drawn with the settings in `generation_config.json`, cut at 120 new tokens, first draw, not selected.

Completion; the prompt is the first line:

```text
{code_sample}
```

Chat; the request is "{chat_request}":

```text
{chat_sample}
```

## Licence

The weights come under the licence of HyperFlexis, Apache 2.0. They were trained on CPython's standard
library, copyright the Python Software Foundation, all rights reserved, under the
[PSF License Version 2](https://docs.python.org/3/license.html). The model can repeat passages of what it was
trained on; the PSF licence applies to those passages.
"""


def model_card(
    model: LlamaForCausalLM,
    tokenizer: Tokenizer,
    files: list[SourceFile],
    training_tokens: int,
    progress: Progress,
) -> str:
    held_out = [file for file in files if file.held_out]
    loss, bits = held_out_loss(model, tokenizer, held_out)
    parameters = sum(p.numel() for p in model.parameters())
    chat_sample = complete(model, tokenizer, chat(CHAT_REQUEST) + ASSISTANT)
    return MODEL_CARD.format(
        **CONFIG,
        parameters=parameters,
        megabytes=2 * parameters / 1e6,
        longest_window=max(stage.length for stage in STAGES),
        bytes_per_token=loss / math.log(2) / bits,
        loss=loss,
        bits=bits,
        held_out=len(held_out),
        python=platform.python_version(),
        files=len(files),
        corpus_megabytes=sum(len(file.text) for file in files) / 1e6,
        chat_percent=100 * CHAT_SHARE,
        peak_lr=PEAK_LR,
        final_lr=FINAL_LR,
        warmup=WARMUP_STEPS,
        steps=progress.step,
        tokens_millions=progress.tokens / 1e6,
        epochs=progress.tokens / training_tokens,
        windows=", then ".join(str(length) for length in dict.fromkeys(stage.length for stage in STAGES)),
        minutes=progress.seconds / 60,
        speed=progress.tokens / progress.seconds,
        code_sample=CODE_PROMPT + complete(model, tokenizer, CODE_PROMPT).rstrip(),
        chat_request=CHAT_REQUEST,
        chat_sample=chat_sample.strip(),
    )


def as_json(value: dict[str, Any]) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"


def export(
    out: Path,
    tokenizer: Tokenizer,
    files: list[SourceFile],
    training_tokens: int,
    checkpoint: Path,
) -> None:
    """Write the directory. Each file appears under its name only when it is complete."""
    state = torch.load(checkpoint)
    model = new_model()
    model.load_state_dict(state["model"])
    # What is measured and sampled below is what is stored: weights rounded to bfloat16.
    weights = {
        name: tensor.bfloat16().contiguous()
        for name, tensor in model.state_dict().items()
        if name != "lm_head.weight"  # tied to the embedding
    }
    model.load_state_dict(weights, strict=False)

    out.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=".draft-", dir=out.parent))  # on the same file system as `out`
    try:
        save_file(weights, draft / "model.safetensors", metadata={"format": "pt"})
        tokenizer.save(str(draft / "tokenizer.json"))
        (draft / "config.json").write_text(as_json(CONFIG))
        (draft / "generation_config.json").write_text(as_json(GENERATION))
        (draft / "tokenizer_config.json").write_text(as_json(TOKENIZER_CONFIG))
        card = model_card(model, tokenizer, files, training_tokens, Progress(**state["progress"]))
        (draft / "README.md").write_text(card)
        for path in sorted(draft.iterdir()):
            path.chmod(0o644)
            path.replace(out / path.name)
    finally:
        shutil.rmtree(draft)
    print(card)


def main() -> None:
    layout = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=layout)
    repository = Path(__file__).resolve().parent.parent
    default_out = repository / "src" / "hyperflexis" / "demo_model"
    default_scratch = Path(tempfile.gettempdir()) / "hyperflexis-demo-model"
    parser.add_argument("--out", type=Path, default=default_out, help="the directory to write")
    parser.add_argument("--scratch", type=Path, default=default_scratch, help="keeps the training state")
    parser.add_argument("--steps", type=int, default=2600)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--export-now", action="store_true", help="write out the last state, do not train")
    args = parser.parse_args()

    torch.set_num_threads(args.threads)
    args.scratch.mkdir(parents=True, exist_ok=True)
    checkpoint = args.scratch / "checkpoint.pt"

    files = standard_library()
    training_files = [file for file in files if not file.held_out]
    tokenizer = train_tokenizer(training_files)
    tokens = encode(tokenizer, training_texts(training_files, args.seed), args.seed)
    print(f"{len(files)} files, {len(tokens):,} training tokens")
    if not args.export_now:
        train(tokens, args.steps, args.seed, checkpoint)
    export(args.out, tokenizer, files, len(tokens), checkpoint)


if __name__ == "__main__":
    main()
