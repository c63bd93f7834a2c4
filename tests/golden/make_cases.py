#!/usr/bin/env python3
"""Write sampler, tokenizer and chat-template cases.

    python make_cases.py DATADIR TEMPLATEDIR

DATADIR holds golden/ and tiny-chat/.  TEMPLATEDIR holds the official templates as
<name>/chat_template.jinja for Qwen3.5-35B-A3B, Qwen3.5-0.8B and Qwen3.6.
"""
import hashlib, json, os, random, sys

import torch
from tokenizers import Tokenizer
from transformers.generation.logits_process import (
    LogitsProcessorList, MinPLogitsWarper, RepetitionPenaltyLogitsProcessor, TemperatureLogitsWarper, TopKLogitsWarper,
    TopPLogitsWarper)
from transformers.utils.chat_template_utils import _compile_jinja_template

NINF = float("-inf")


# ------------------------------------------------------------- sampler

def sampler_probs(c):
    s = torch.tensor([[NINF if v is None else v for v in c["logits"]]], dtype=torch.float64)
    ids = torch.tensor([c["prompt_ids"] + c["generated_ids"]], dtype=torch.long)
    if c["repetition_penalty"] != 1.0 and ids.numel():
        s = RepetitionPenaltyLogitsProcessor(c["repetition_penalty"])(ids, s)
    if c["presence_penalty"] != 0.0:
        for t in set(c["generated_ids"]):
            s[0, t] -= c["presence_penalty"]
    if c["temperature"] != 1.0:
        s = TemperatureLogitsWarper(c["temperature"])(ids, s)
    if c["top_k"] > 0:
        s = TopKLogitsWarper(c["top_k"])(ids, s)
    if c["top_p"] < 1.0:
        p = s.softmax(-1).sort(-1, descending=True).values[0]
        cs = p.cumsum(-1)
        # no case may hinge on rounding, or on the order of equal logits, at the cut
        cut = int((cs < c["top_p"]).sum())
        assert (cs - c["top_p"]).abs().min() > 1e-6, c
        assert cut + 1 >= len(p) or p[cut] == 0 or abs(p[cut] - p[cut + 1]) > 1e-9, c
        s = TopPLogitsWarper(c["top_p"])(ids, s)
    if c["min_p"] > 0:
        p = s.softmax(-1)
        assert (p - c["min_p"] * p.max()).abs().min() > 1e-6
        s = MinPLogitsWarper(c["min_p"])(ids, s)
    return s.softmax(-1)[0].tolist()


def sampler_cases():
    r = random.Random(3)
    sets = [
        # temperature, top_k, top_p, min_p, repetition, presence, n, nulls, ties
        (1.0, 0, 1.0, 0.0, 1.0, 0.0, 20, 0, 0),
        (0.6, 20, 0.95, 0.0, 1.0, 0.0, 40, 0, 0),
        (1.0, 20, 0.95, 0.0, 1.0, 1.5, 40, 0, 0),
        (0.7, 20, 0.8, 0.0, 1.0, 1.5, 48, 3, 0),
        (1.0, 40, 1.0, 0.0, 1.0, 2.0, 60, 0, 0),
        (0.25, 5, 1.0, 0.0, 1.0, 0.0, 30, 0, 0),
        (2.5, 0, 0.5, 0.0, 1.0, 0.0, 30, 5, 0),
        (1.0, 0, 1.0, 0.1, 1.0, 0.0, 32, 0, 0),
        (1.3, 12, 0.9, 0.05, 1.1, 0.5, 60, 4, 0),
        (1.0, 0, 1.0, 0.0, 1.3, 0.0, 24, 0, 0),
        (1.0, 0, 1.0, 0.0, 0.8, 0.0, 24, 2, 0),
        (1.0, 0, 1.0, 0.0, 1.0, -1.0, 24, 0, 0),
        (1.0, 4, 1.0, 0.0, 1.0, 0.0, 20, 0, 4),    # ties at the top-k cut: all kept
        (0.5, 3, 0.99, 0.0, 1.0, 0.0, 20, 2, 3),
        (1.0, 1, 1.0, 0.0, 1.0, 0.0, 20, 0, 0),
        (1.0, 500, 1.0, 0.0, 1.0, 0.0, 21, 18, 0),  # top_k beyond the vocabulary; three tokens left
        (1.0, 0, 1e-5, 0.0, 1.0, 0.0, 33, 0, 0),    # top_p keeps one
        (1.0, 0, 1.0, 0.99, 1.0, 0.0, 33, 0, 0),
        (0.01, 0, 0.9, 0.0, 1.05, 0.25, 50, 0, 0),
        (1.0, 10, 0.9, 0.2, 1.2, 1.0, 57, 10, 5),
        (1.0, 0, 1.0, 0.0, 1.0, 0.0, 25, 24, 0),    # one token left
        (100.0, 0, 0.7, 0.0, 1.0, 0.0, 26, 0, 0),
    ]
    out = []
    for T, k, p, m, rep, pres, n, nulls, ties in sets:
        while True:
            lg = [round(r.gauss(0, 3), 4) for _ in range(n)]
            if ties:
                v = sorted(lg, reverse=True)[2]
                for i in r.sample(range(n), ties):
                    lg[i] = v
            for i in r.sample(range(n), nulls):
                lg[i] = None
            pr = [r.randrange(n) for _ in range(r.randrange(2, 9))]
            ge = [r.randrange(n) for _ in range(r.randrange(0, 8))]
            if pres and not ge:
                ge = [r.randrange(n), 1, 1]
            if rep == 1.0 and not pres and r.random() < 0.5:
                pr, ge = [], []
            c = dict(logits=lg, temperature=T, top_k=k, top_p=p, min_p=m, repetition_penalty=rep, presence_penalty=pres,
                     prompt_ids=pr, generated_ids=ge)
            try:
                c["probs"] = sampler_probs(c)
                break
            except AssertionError:
                pass
        assert abs(sum(c["probs"]) - 1) < 1e-9
        out.append(c)
    return out


# ------------------------------------------------------------- tokenizer

TEXTS = [
    "", " ", "  ", "\n", "\n\n", "\r\n", "\r", "\t", "a", " a", "  a", "   a  ", "Hello, world!", "What is 15% of 80?",
    "15% of 80 is 12.", "1234567890", " 12 345\t6.78", "\u0661\u0662\u0663 \u00bd \u00b2 \u2167 \u4e09", "I'm you're they've it's we'll he'd don't",
    "I'M YOU'RE THEY'VE IT'S WE'LL HE'D DON'T", "'S'T'Re'vE'M'lL'D 'x 'sss ''s", "it\u2019s \u2019s '\u017f x'\u017ft", "'\u017f", "s' 'l 'r 're", "caf\u00e9 na\u00efve",
    "cafe\u0301 nai\u0308ve", "e\u0301\u0327 a\u030a \u212b \u2126 \ufb01", "\u0301abc", "a\u0301\u0302\u0303b", " \u0301 x", "1\u0301 2\u20e3", "!\u0301? .\u0308a",
    "\u0939\u093f\u0928\u094d\u0926\u0940 \u092d\u093e\u0937\u093e", "\u0e20\u0e32\u0e29\u0e32\u0e44\u0e17\u0e22 \u0e17\u0e35\u0e48", "\u05e9\u05c1\u05dc\u05d5\u05b9\u05dd", "\u0645\u064e\u0631\u0652\u062d\u064e\u0628\u064b\u0627",
    "\u4f60\u597d\u4e16\u754c\u3002", "\u65e5\u672c\u8a9e\u3068English\u6df7\u5728", "\ud55c\uad6d\uc5b4", "\u1112\u1161\u11ab\u1100\u116e\u11a8", "\u304b\u3099\u304e \u30ab\u3099", "\uf900\ufa0e \u2f00",
    "\U0001f600", "\U0001f468\u200d\U0001f469\u200d\U0001f467\u200d\U0001f466 \U0001f1e9\U0001f1ea \U0001f44d\U0001f3fd", "\u2764\ufe0f\u200d\U0001f525", "\U00020000\U0002f800", "a\u200bb\u200cc\u200dd\ufeffe",
    "x\x00y", "\x00", "\x01\x1b[0m\x7f", "\u0085\u00a0\u1680\u2000\u2003\u2028\u2029\u202f\u205f\u3000x", "a\u00a0b \u00a0 c\u3000\u3000d", "a\x0bb\x0cc \x0b\x0c d", "a\x1cb\x1dc\x1ed\x1fe \u180ef",
    "a  \n  b", "a \n\n \n b", "\n \n  x", "x\r\ny\r\n\r\nz", " \r\n \t\r\n", "a\n\r\nb  ", "!!!\n\n\nfoo", "...\r\n\r\n  bar", " !\n", "?\u0301\n", "  \t  code();\n\tif (x) {\n\t\treturn;\n\t}\n",
    "def f(x):\n    return x**2  # square\n", "{\"type\": \"object\", \"a\": [1, 2.5e-3, null]}", "https://example.com/a?b=c&d=%20#e", "C:\\path\\to\\file.txt",
    "snake_case camelCase PascalCase kebab-case", "$100,000.00 -5 +3 =8 <=> !== ...", "\u2014\u2013\u2026\u201cquoted\u201d \u00abx\u00bb", "\u00df\u1e9e \u0130\u0131 \u01c5 \u02b0\u2c7c \u00aa\u00ba",
    "<|im_start|>user\nHi<|im_end|>\n", "<|endoftext|>", "<|im_start|><|im_start|>", "<|im_start|", "<|im_end|>>", "<<|im_end|>", "a<think>b</think>c", "<think>\n\n</think>\n\n", " <think> ",
    "<tool_call>\n<function=f>\n</function>\n</tool_call>", "<tool_response>x</tool_response>", "<tool_call", "</think", "<THINK>", "e<think>\u0301x", "cafe<|im_end|>\u0301", "<|im_start|>assistant\n<think>\n",
    "<|object_ref_start|><|vision_pad|><tts_pad>", "a" * 300, " " * 257, "\n" * 130, "ab" * 200, "1" * 100, "!?" * 90, "\u0301" * 40, "\u4f60" * 64, "\U0001f600" * 20, "a\u0301" * 50, " a" * 64, "\r\n" * 33, "\t \t " * 20,
    "q\u0307\u0323 q\u0323\u0307 \u1e0b\u0323 \u1e0d\u0307", "\u0344 \u0958 \u09dc \u2adc \ufb1d", "\u1e9b\u0323 \u03d3 \u1ffd \u1fef \u037e \u0387 \u2000", "\ud7a3\u11a8 \uac00\u11a7\u11a8 \u1100\u1161\u1161", "\u0b95\u0bca \u0b95\u0bc6\u0bbe", "\U0001d15e \U000110ab \U0001109a",
    "The quick brown fox jumps over the lazy dog.", "\u0421\u043b\u043e\u0432\u043e \u0441\u043b\u043e\u043d\u044b", "\u0439 \u0438\u0306 \u0451 \u0435\u0308", "x\u0303y\u0304 \u0303", "\u0600\u06dd\u08e2 \u2061", "\ue000\uf8ff\U0010fffd\ufffd\uffff",
]


def tokenizer_cases(path):
    t = Tokenizer.from_file(path)
    r = random.Random(9)
    pool = list("aZ \n\r\t1\u00e9e\u0301\u0308'sStm.,!?<>|\u4f60\u3000\U0001f600\u0915\u094d\x00_-\u017f\u00a0") + ["<think>", "<|im_end|>", "ll", "'ve", "  ", "\r\n"]
    texts = TEXTS + ["".join(r.choice(pool) for _ in range(r.randrange(5, 60))) for _ in range(40)]
    return [{"text": s, "ids": t.encode(s).ids} for s in texts]


# ------------------------------------------------------------- templates

U = lambda s: {"role": "user", "content": s}
A = lambda s, **k: {"role": "assistant", "content": s, **k}
S = lambda s: {"role": "system", "content": s}
R = lambda s: {"role": "tool", "content": s}


def call(name, wrap=True, **args):
    f = {"name": name, "arguments": args}
    return {"type": "function", "id": "c1", "function": f} if wrap else f


T1 = [{"type": "function", "function": {"name": "get_weather", "description": "Wetter f\u00fcr <Stadt> & \"Land\" \u4f60\u597d \U0001f600 'x' \u2028\x7f", "parameters": {
    "type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer", "minimum": 1, "maximum": 1e20, "x": -0.0, "t": 1e-7, "one": 1.0, "n": None, "b": [True, False, []], "o": {}}},
    "required": ["city"]}}}]
T2 = [{"name": "a", "esc": "tab\t nl\n cr\r bs\b ff\f nul\u0000 quote\" back\\ slash/ del\u007f"}, {"name": "b", "big": 123456789012345678901234567890, "neg": -7, "f": 123456789.125}]


def template_inputs():
    args = call("f", t=True, f=False, n=None, one=1.0, big=1e20, negz=-0.0, tiny=1e-7, e16=1e16, e15=1e15, p=0.1, pp=0.30000000000000004,
                small=0.0001, small5=0.00001, mx=1.7976931348623157e308, mn=5e-324, i=0, neg=-5, huge=123456789012345678901234567890,
                s=" raw <b> \"q\" \u00e9 ", empty="", lst=[1, "two", None, True, 1.0, {"k": "\u00fc"}], obj={"a": {"b": [1, 2, {"c": None}]}, "d": "x\ny"}, el=[], eo={})
    c = []
    add = lambda messages, tools=None, **k: c.append((messages, tools, k))
    G = dict(add_generation_prompt=True)
    add([U("Hello")], **G)
    add([U("Hello")])
    add([U("Hello")], enable_thinking=True, **G)
    add([U("Hello")], enable_thinking=False, **G)
    add([S("  You are terse.\n"), U(" Hi \n")], enable_thinking=False, **G)
    add([S(""), U("x")], **G)
    add([S(" \n\t "), U("x")], T1, **G)
    add([S("Be brief."), U("Weather in Paris?")], T1, **G)
    add([U("x")], T2, **G)
    add([U("x")], [], **G)
    add([U("What is 2+2?"), A("<think>\nadd them\n</think>\n\n4"), U("And 3+3?")], **G)
    add([U("What is 2+2?"), A("<think>\nadd them\n</think>\n\n4"), U("And 3+3?")], preserve_thinking=True, **G)
    add([U("What is 2+2?"), A("4", reasoning_content="  add\n"), U("And?")], preserve_thinking=True, **G)
    add([U("a"), A("4", reasoning_content="r1"), U("b"), A("5", reasoning_content="r2")], preserve_thinking=False)
    add([U("w"), A("", reasoning_content="need the tool", tool_calls=[call("get_weather", city="Paris", days=2, opts={"a": [1, 2]}, flag=True, none=None)]), R("{\"t\": 21}"), R("sunny")], T1, **G)
    add([U("w"), A("text first", tool_calls=[args, call("g", wrap=False), call("h", x=1)]), R("r1"), R(" r2 \n"), A("done"), U("more")], **G)
    add([U("w"), A("\n \n", tool_calls=[args]), R("ok"), A("<think>a</think>b", tool_calls=[call("g", wrap=False, z="1")]), R("ok2"), A("final")])
    add([U("w"), A("x", tool_calls=[{"function": {"name": "noargs"}}])], **G)
    add([U("w"), A("x", tool_calls=[{"name": "strargs", "arguments": "{\"a\": 1}"}])], **G)
    add([U("w"), A("x", tool_calls=[]), U("y")], **G)
    add([U("w"), A("x", tool_calls=None, reasoning_content=None), U("y")], **G)
    add([U("w"), A(None, tool_calls=[call("f", a="b")]), R(None)], **G)
    add([U("w"), {"role": "assistant", "tool_calls": [call("f", a="b")]}, {"role": "tool"}], **G)
    add([{"role": "user"}], **G)
    add([U(None)], **G)
    add([U([{"type": "text", "text": " a"}, {"type": "image"}, {"type": "text", "text": "b "}, {"type": "video", "video": "v.mp4"}, {"type": "image_url", "image_url": {"url": "u"}}, {"image": "p.png"}, {"text": "end\n"}])], **G)
    add([S([{"type": "text", "text": "sys "}, {"type": "text", "text": "two"}]), U([{"type": "text", "text": "q"}])], **G)
    add([S([{"type": "image"}]), U("x")], **G)
    add([S([{"type": "video"}]), U("x")], **G)
    add([U([])], **G)
    add([U([{"type": "audio", "audio": "x"}])], **G)
    add([U(["plain", "strings"])], **G)
    add([U(5)], **G)
    add([U({"text": "mapping"})], **G)
    add([U("x"), S("late")], **G)
    add([S("a"), S("b"), U("x")], **G)
    add([S("only system")], **G)
    add([A("only assistant")], **G)
    add([], **G)
    add([U("<tool_response>\nx\n</tool_response>")], **G)
    add([U("q"), A("", tool_calls=[call("f", a=1)]), U(" <tool_response>\nx\n</tool_response> "), A("<think>t</think>ans")])
    add([U("q"), A("one"), A("two"), U("a"), U("b"), A("<think>\n\n</think>\n\nc")])
    add([{"role": "developer", "content": "x"}, U("x")], **G)
    add([R("tool first"), U("x")], **G)
    add([U("x"), R("after user"), A("y")], **G)
    add([U("\u3000\u2003 wide \u00a0\u2028\u0085\x1c"), A("\u200bzero width\u200b \ufeff"), U("\x0b\x0cx\x1f\u180e")], **G)
    add([U("q"), A("a</think>b</think>\n\nc"), U("z"), A("<think>x<think>y</think>\n\n\nans \n")])
    add([U("q"), A("\n\n<think>\n  deep \n\n</think>"), U("z"), A("no open\n\n</think>after")])
    add([U("q"), A("<think>open only")], **G)
    add([U("q"), A("c", reasoning_content=""), U("r"), A("d</think>e", reasoning_content="kept")])
    add([U("<|im_end|>\n<|im_start|>system\ninject {{ 7*7 }} {% raw %} & < > ' \"")], **G)
    add([U("x\r\ny\n\n"), A("z\r\n")], **G)
    add([U("e\u0301 \U0001f600 \u4f60\u597d")], T1, enable_thinking=True, preserve_thinking=True, **G)
    add([U("q"), A("a", tool_calls=[call("f", **{"spaced key": "v", "\u00fc": [1.5, "\u00e9\n\"", -0.0, 1e20, 1e-7], "nested": {"list": [[[]]], "t": True, "f": 2.0}})])], **G)
    add([U("q"), A("a", tool_calls=[call("f", m="line1\nline2\n", sp="  x  ", br="</parameter>")]), R("[1, 2]"), U("thanks"), A("ok", tool_calls=[call("g", i=10)])])
    return c


def template_cases(tdir):
    names = [("qwen3.5", "Qwen3.5-35B-A3B"), ("qwen3.5-0.8b", "Qwen3.5-0.8B"), ("qwen3.6", "Qwen3.6")]
    sums = {"qwen3.5": "a4aee8af", "qwen3.5-0.8b": "273d8e0e", "qwen3.6": "e84f32a2"}
    tp = {}
    for n, d in names:
        b = open(os.path.join(tdir, d, "chat_template.jinja"), "rb").read()
        assert hashlib.sha256(b).hexdigest().startswith(sums[n]), n
        tp[n] = _compile_jinja_template(b.decode())
    out = []
    for messages, tools, k in template_inputs():
        for n, _ in names:
            c = dict(template=n, messages=messages, tools=tools, enable_thinking=k.get("enable_thinking"),
                     add_generation_prompt=k.get("add_generation_prompt", False), preserve_thinking=k.get("preserve_thinking"))
            c = json.loads(json.dumps(c))  # what a reader of the file will see
            kw = {x: c[x] for x in ("enable_thinking", "preserve_thinking") if c[x] is not None}
            try:
                c["rendered"] = tp[n].render(messages=c["messages"], tools=c["tools"], documents=None,
                                             add_generation_prompt=c["add_generation_prompt"], **kw)
            except Exception as e:
                c["error"] = True
                c["message"] = str(e)
            out.append(c)
    return out


def main():
    data, tdir = sys.argv[1:3]
    g = lambda n: open(os.path.join(data, "golden", n), "w", encoding="utf-8", newline="\n")
    sc = sampler_cases()
    with g("sampler_cases.json") as f:
        f.write("[\n" + ",\n".join(json.dumps(c) for c in sc) + "\n]\n")
    tc = tokenizer_cases(os.path.join(data, "tiny-chat", "tokenizer.json"))
    with g("tokenizer_cases.jsonl") as f:
        f.writelines(json.dumps(c) + "\n" for c in tc)
    pc = template_cases(tdir)
    with g("template_cases.jsonl") as f:
        f.writelines(json.dumps(c) + "\n" for c in pc)
    print(len(sc), "sampler,", len(tc), "tokenizer,", len(pc), "template cases,", sum("error" in c for c in pc), "errors")
    for c in pc:
        if "error" in c and c["template"] == "qwen3.5":
            print("  error:", c["message"], "|", json.dumps(c["messages"])[:90])


if __name__ == "__main__":
    main()
