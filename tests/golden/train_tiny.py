#!/usr/bin/env python3
"""Train a very small Qwen3.5-MoE chat model that answers percentage questions.

    python train_tiny.py OUTDIR [--minutes M]

OUTDIR must already hold chat_template.jinja (the official 0.8B one).  The training
model is a plain functional PyTorch form of the same maths; transformers' own classes
check the result.  Weights are trained under simulated int8/int4 rounding (groups of
32, straight-through) of weights and int8 rounding of activations.
"""
import argparse, json, math, os, random, sys, time

os.environ.setdefault("HF_HUB_OFFLINE", "1")
import torch
import torch.nn.functional as F
import zstandard
from safetensors.torch import save as st_save, save_file, load_file
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

SEED = 5
PS, NS = list(range(5, 101, 5)), list(range(10, 201, 10))
REGEX = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*"
         r"|\s*[\r\n]+|\s+(?!\S)|\s+")
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
ORDINARY = ["<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>", "<think>", "</think>"]
N_BASE = 256 + 160
VOCAB = 432

TEXT = dict(
    attention_bias=False, attention_dropout=0.0, attn_output_gate=True, dtype="bfloat16", eos_token_id=None,
    full_attention_interval=4, head_dim=32, hidden_act="silu", hidden_size=96, initializer_range=0.02,
    layer_types=["linear_attention"] * 3 + ["full_attention"], linear_conv_kernel_dim=4, linear_key_head_dim=32,
    linear_num_key_heads=2, linear_num_value_heads=4, linear_value_head_dim=32, max_position_embeddings=4096,
    mlp_only_layers=[], model_type="qwen3_5_moe_text", moe_intermediate_size=32, mtp_num_hidden_layers=0,
    mtp_use_dedicated_embeddings=False, num_attention_heads=4, num_experts=16, num_experts_per_tok=4,
    num_hidden_layers=4, num_key_value_heads=2, rms_norm_eps=1e-06, router_aux_loss_coef=0.001,
    shared_expert_intermediate_size=32, use_cache=True, vocab_size=VOCAB, mamba_ssm_dtype="float32",
    rope_parameters=dict(mrope_interleaved=True, mrope_section=[2, 1, 1], rope_type="default", rope_theta=10000000,
                         partial_rotary_factor=0.25))


def fmt(p, n):
    c = p * n
    return str(c // 100) if c % 100 == 0 else ("%d.%02d" % (c // 100, c % 100)).rstrip("0")


def grid():
    return [(f"What is {p}% of {n}?", f"{p}% of {n} is {fmt(p, n)}.") for p in PS for n in NS]


# ---------------------------------------------------------------- tokenizer

def make_tokenizer(qa):
    t = Tokenizer(models.BPE(dropout=None, unk_token=None, fuse_unk=False, byte_fallback=False, ignore_merges=False))
    t.normalizer = normalizers.NFC()
    t.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(REGEX), behavior="isolated", invert=False),
        pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=False, use_regex=False)])
    t.decoder = decoders.ByteLevel(add_prefix_space=False, trim_offsets=False, use_regex=False)
    t.post_processor = processors.ByteLevel(add_prefix_space=False, trim_offsets=False, use_regex=False)
    extra = ("The quick brown fox jumps over the lazy dog. Hello, my name is Anna! How are you today? I'm fine, you're "
             "right, they've gone; it's his and we'll see, isn't it? She'd said: don't. function parameter name value "
             "city Paris weather {\"type\": \"object\"}  if (x == 0) { return 1; }\n\n  for (;;)\n\t// done\r\n"
             " caf\u00e9 na\u00efve \u00fcber r\u00e9sum\u00e9 \u4f60\u597d\u4e16\u754c \u4f60\u597d \u65e5\u672c\u8a9e "
             "\u65e5\u672c \u0441\u043b\u043e\u0432\u043e \u0441\u043b\u043e\u043d \u0939\u093f\u0928\u094d\u0926\u0940 \U0001f600\U0001f600 ")
    corpus = [extra] * 40 + [q + "\n" + a + "\n\n" for q, a in qa] + ["user\n", "assistant\n", "system\n", "\n\n"] * 200
    tr = trainers.BpeTrainer(vocab_size=N_BASE, special_tokens=[], show_progress=False, min_frequency=2,
                             initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    t.train_from_iterator(corpus, tr)
    assert t.get_vocab_size() == N_BASE, t.get_vocab_size()
    for s in SPECIAL:
        t.add_special_tokens([AddedToken(s, normalized=False, special=True)])
    t.add_tokens([AddedToken(s, normalized=False, special=False) for s in ORDINARY])
    return t


def jinja_env():
    from jinja2.sandbox import ImmutableSandboxedEnvironment
    import jinja2

    def raise_exception(m):
        raise jinja2.exceptions.TemplateError(m)

    env = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"])
    env.filters["tojson"] = lambda x, **k: json.dumps(x, ensure_ascii=False)
    env.globals["raise_exception"] = raise_exception
    return env


# ---------------------------------------------------------------- model

def init_params(c, g):
    rn = lambda *s, std: (torch.randn(*s, generator=g) * std)
    H, V, p = c["hidden_size"], c["vocab_size"], {}
    lin = lambda o, i, k=1.0: rn(o, i, std=k / math.sqrt(i))
    p["model.embed_tokens.weight"] = rn(V, H, std=0.5)
    p["lm_head.weight"] = lin(V, H, 0.5)
    p["model.norm.weight"] = torch.zeros(H)
    nk, nv, dk, dv = c["linear_num_key_heads"], c["linear_num_value_heads"], c["linear_key_head_dim"], c["linear_value_head_dim"]
    D, nh, nkv, E, I, S = c["head_dim"], c["num_attention_heads"], c["num_key_value_heads"], c["num_experts"], c["moe_intermediate_size"], c["shared_expert_intermediate_size"]
    for i, t in enumerate(c["layer_types"]):
        b = f"model.layers.{i}."
        p[b + "input_layernorm.weight"] = torch.zeros(H)
        p[b + "post_attention_layernorm.weight"] = torch.zeros(H)
        if t == "full_attention":
            a = b + "self_attn."
            p[a + "q_proj.weight"] = lin(nh * D * 2, H)
            p[a + "k_proj.weight"] = lin(nkv * D, H)
            p[a + "v_proj.weight"] = lin(nkv * D, H)
            p[a + "o_proj.weight"] = lin(H, nh * D, 0.5)
            p[a + "q_norm.weight"] = torch.zeros(D) + 0.3
            p[a + "k_norm.weight"] = torch.zeros(D) + 0.3
        else:
            a = b + "linear_attn."
            C = 2 * nk * dk + nv * dv
            p[a + "in_proj_qkv.weight"] = lin(C, H)
            p[a + "in_proj_z.weight"] = lin(nv * dv, H)
            p[a + "in_proj_b.weight"] = lin(nv, H)
            p[a + "in_proj_a.weight"] = lin(nv, H)
            w = rn(C, 1, 4, std=0.2)
            w[:, 0, 3] += 0.7
            p[a + "conv1d.weight"] = w
            dt = torch.exp(torch.rand(nv, generator=g) * math.log(50) + math.log(0.004))
            p[a + "dt_bias"] = dt + torch.log(-torch.expm1(-dt))
            p[a + "A_log"] = torch.log(torch.rand(nv, generator=g) * 3.5 + 0.5)
            p[a + "norm.weight"] = torch.ones(dv)
            p[a + "out_proj.weight"] = lin(H, nv * dv, 0.5)
        m = b + "mlp."
        p[m + "gate.weight"] = lin(E, H)
        p[m + "experts.gate_up_proj"] = rn(E, 2 * I, H, std=1 / math.sqrt(H))
        p[m + "experts.down_proj"] = rn(E, H, I, std=0.7 / math.sqrt(I))
        p[m + "shared_expert.gate_proj.weight"] = lin(S, H)
        p[m + "shared_expert.up_proj.weight"] = lin(S, H)
        p[m + "shared_expert.down_proj.weight"] = lin(H, S, 0.7)
        p[m + "shared_expert_gate.weight"] = lin(1, H)
    return p


def rtn(w, bits):
    """round to nearest, symmetric, groups of 32 along the last dimension"""
    s, q = w.shape, 2 ** (bits - 1) - 1
    g = w.reshape(*s[:-1], -1, 32)
    d = (g.abs().amax(-1, keepdim=True) / q).clamp_min(1e-12)
    return ((g / d).round().clamp(-q - 1, q) * d).reshape(s)


def rtn4_neg8(w):
    """the other common int4 form: the largest magnitude maps to -8"""
    g = w.reshape(*w.shape[:-1], -1, 32)
    m = g.gather(-1, g.abs().argmax(-1, keepdim=True))
    d = m / -8
    d = torch.where(d == 0, torch.full_like(d, 1e-12), d)
    return ((g / d).round().clamp(-8, 7) * d).reshape(w.shape)


def noise(w, bits):
    """what an unknown quantiser does to w: uniform noise one step of round-to-nearest wide. Training with this rather than with
    a certain rounding keeps the weights off any quantiser's grid, so that quantisers can be compared on the model"""
    g = w.reshape(*w.shape[:-1], -1, 32)
    d = g.abs().amax(-1, keepdim=True) / (2 ** (bits - 1) - 1)
    return (g + d * (torch.rand_like(g) - 0.5)).reshape(w.shape)


def is_big(k):
    return any(x in k for x in ("_proj", "lm_head", "embed_tokens")) and "in_proj_a" not in k and "in_proj_b" not in k


MODES = {  # name -> (bits of routed experts, bits of the rest); None = as is
    "f32": (None, None), "q8": (8, 8), "q4e": (4, 8), "q4": (4, 4)}


def quantize(P, mode, q4=None, how=rtn):
    eb, ob = MODES[mode]
    if eb is None:
        return dict(P)
    q4 = q4 or (lambda w: how(w, 4))
    out = {}
    for k, w in P.items():
        if is_big(k):
            b = eb if ".experts." in k else 8 if "embed_tokens" in k else ob
            w = w + ((q4(w) if b == 4 else how(w, 8)) - w).detach()
        out[k] = w
    return out


def forward(P, c, ids, act8=False):
    """logits; right padding is harmless because everything is causal (needs T <= 64)"""
    eps, H = c["rms_norm_eps"], c["hidden_size"]
    nk, nv, dk, dv = c["linear_num_key_heads"], c["linear_num_value_heads"], c["linear_key_head_dim"], c["linear_value_head_dim"]
    D, nh, nkv, E, K = c["head_dim"], c["num_attention_heads"], c["num_key_value_heads"], c["num_experts"], c["num_experts_per_tok"]
    B, T = ids.shape
    qa = (lambda x: x + (rtn(x, 8) - x).detach()) if act8 else (lambda x: x)
    rms = lambda x: x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps)
    norm = lambda x, w: rms(x) * (1 + w)
    x = P["model.embed_tokens.weight"][ids]
    low = torch.ones(T, T, dtype=torch.bool).tril()
    aux = 0.0
    for i, t in enumerate(c["layer_types"]):
        b = f"model.layers.{i}."
        h = norm(x, P[b + "input_layernorm.weight"])
        hq = qa(h)
        if t == "full_attention":
            a = b + "self_attn."
            q, gate = (hq @ P[a + "q_proj.weight"].T).view(B, T, nh, 2 * D).chunk(2, -1)
            k = (hq @ P[a + "k_proj.weight"].T).view(B, T, nkv, D)
            v = (hq @ P[a + "v_proj.weight"].T).view(B, T, nkv, D)
            q, k = norm(q, P[a + "q_norm.weight"]), norm(k, P[a + "k_norm.weight"])
            rd = int(D * c["rope_parameters"]["partial_rotary_factor"])
            inv = 1.0 / (c["rope_parameters"]["rope_theta"] ** (torch.arange(0, rd, 2).float() / rd))
            f = torch.arange(T).float()[:, None] * inv
            cos, sin = torch.cat([f, f], -1).cos()[:, None], torch.cat([f, f], -1).sin()[:, None]

            def rope(y):
                r, o = y[..., :rd], y[..., rd:]
                rot = torch.cat([-r[..., rd // 2:], r[..., : rd // 2]], -1)
                return torch.cat([r * cos + rot * sin, o], -1)

            q, k = rope(q).transpose(1, 2), rope(k).transpose(1, 2).repeat_interleave(nh // nkv, 1)
            v = v.transpose(1, 2).repeat_interleave(nh // nkv, 1)
            s = (q @ k.transpose(-1, -2) / math.sqrt(D)).masked_fill(~low, float("-inf")).softmax(-1)
            o = (s @ v).transpose(1, 2) * gate.sigmoid()
            x = x + qa(o.reshape(B, T, nh * D)) @ P[a + "o_proj.weight"].T
        else:
            a = b + "linear_attn."
            u = (hq @ P[a + "in_proj_qkv.weight"].T).transpose(1, 2)
            z = (hq @ P[a + "in_proj_z.weight"].T).view(B, T, nv, dv)
            beta = (h @ P[a + "in_proj_b.weight"].T).sigmoid().transpose(1, 2)
            g = (-P[a + "A_log"].exp() * F.softplus(h @ P[a + "in_proj_a.weight"].T + P[a + "dt_bias"])).transpose(1, 2)
            w = P[a + "conv1d.weight"]
            up = F.pad(u, (3, 0))
            u = F.silu(sum(up[:, :, j:j + T] * w[:, 0, j][:, None] for j in range(4))).transpose(1, 2)
            q, k, v = u.split([nk * dk, nk * dk, nv * dv], -1)
            l2 = lambda y: y * torch.rsqrt(y.pow(2).sum(-1, keepdim=True) + 1e-6)
            q = l2(q.reshape(B, T, nk, dk)).repeat_interleave(nv // nk, 2).transpose(1, 2) / math.sqrt(dk)
            k = l2(k.reshape(B, T, nk, dk)).repeat_interleave(nv // nk, 2).transpose(1, 2)
            v = v.reshape(B, T, nv, dv).transpose(1, 2)
            G = g.cumsum(-1)
            dec = (G[..., :, None] - G[..., None, :]).masked_fill(~low, float("-inf")).exp()
            A = ((k * beta[..., None]) @ k.transpose(-1, -2)) * dec
            U = torch.linalg.solve_triangular(A, v * beta[..., None], upper=False, unitriangular=True)
            o = (((q @ k.transpose(-1, -2)) * dec) @ U).transpose(1, 2)
            o = P[a + "norm.weight"] * rms(o) * F.silu(z)
            x = x + qa(o.reshape(B, T, nv * dv)) @ P[a + "out_proj.weight"].T
        m = b + "mlp."
        h = norm(x, P[b + "post_attention_layernorm.weight"]).view(B * T, H)
        hq = qa(h)
        p = (h @ P[m + "gate.weight"].T).softmax(-1)
        w, idx = p.topk(K, -1)
        w = w / w.sum(-1, keepdim=True)
        flat, order = idx.reshape(-1).sort()
        cnt = torch.bincount(flat, minlength=E)
        aux = aux + E * (cnt.float() / cnt.sum() * p.mean(0)).sum()
        tok = order // K
        gu, dn, outs, s = P[m + "experts.gate_up_proj"].unbind(0), P[m + "experts.down_proj"].unbind(0), [], 0
        xs = hq[tok]
        for e, part in enumerate(xs.split(cnt.tolist())):
            gt, upj = (part @ gu[e].T).chunk(2, -1)
            outs.append(qa(F.silu(gt) * upj) @ dn[e].T)
        y = torch.cat(outs) * w.reshape(-1)[order][:, None]
        y = torch.zeros_like(h).index_add(0, tok, y)
        sh = qa(F.silu(hq @ P[m + "shared_expert.gate_proj.weight"].T) * (hq @ P[m + "shared_expert.up_proj.weight"].T))
        y = y + (h @ P[m + "shared_expert_gate.weight"].T).sigmoid() * (sh @ P[m + "shared_expert.down_proj.weight"].T)
        x = x + y.view(B, T, H)
    return qa(norm(x, P["model.norm.weight"])), aux


def logits_of(P, hidden):
    return hidden @ P["lm_head.weight"].T


@torch.no_grad()
def accuracy(P, c, ids, mask, mode="f32", act8=False, q4=None):
    """teacher forced: every answer token is the argmax  <=>  greedy decoding gives the exact answer"""
    Q = quantize(P, mode, q4)
    ok, margin = 0, 1e9
    for i in range(0, len(ids), 100):
        a, k = ids[i:i + 100], mask[i:i + 100]
        lg = logits_of(Q, forward(Q, c, a, act8)[0])[:, :-1]
        t = a[:, 1:]
        right = lg.gather(-1, t[..., None])[..., 0]
        other = lg.scatter(-1, t[..., None], float("-inf")).amax(-1)
        m = (right - other).masked_fill(~k[:, 1:], 1e9).amin(-1)
        ok += int((m > 0).sum())
        margin = min(margin, m.min().item())
    return ok / len(ids), margin


# ---------------------------------------------------------------- main

def data(outdir, qa, tok):
    tpl = jinja_env().from_string(open(os.path.join(outdir, "chat_template.jinja"), encoding="utf-8").read())
    seqs = []
    for q, a in qa:
        pr = tpl.render(messages=[{"role": "user", "content": q}], add_generation_prompt=True)
        assert pr.endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n"), pr
        x, y = tok.encode(pr).ids, tok.encode(a + "<|im_end|>").ids
        assert tok.encode(pr + a + "<|im_end|>").ids == x + y
        seqs.append((x, y))
    T = max(len(x) + len(y) for x, y in seqs)
    ids = torch.full((len(seqs), T), tok.token_to_id("<|endoftext|>"))
    mask = torch.zeros(len(seqs), T, dtype=torch.bool)
    for i, (x, y) in enumerate(seqs):
        ids[i, : len(x) + len(y)] = torch.tensor(x + y)
        mask[i, len(x): len(x) + len(y)] = True
    return seqs, ids, mask


def train(c, ids, mask, minutes, log=True):
    g = torch.Generator().manual_seed(SEED)
    random.seed(SEED)
    P = {k: v.requires_grad_() for k, v in init_params(c, g).items()}
    nodecay = [v for v in P.values() if v.ndim == 1]
    decay = [v for v in P.values() if v.ndim > 1]
    base = 3e-3
    opt = torch.optim.AdamW([dict(params=decay, weight_decay=0.05), dict(params=nodecay, weight_decay=0.0)], lr=base, betas=(0.9, 0.98))
    ema = {k: v.detach().clone() for k, v in P.items()}
    t0, step, B = time.time(), 0, 100
    while True:
        fr = (time.time() - t0) / (minutes * 60)
        if fr >= 1:
            break
        perm = torch.randperm(len(ids), generator=g)
        for i in range(0, len(ids), B):
            fr = min(1.0, (time.time() - t0) / (minutes * 60))
            lr = base * min(1, (step + 1) / 50) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * fr)))
            for gr in opt.param_groups:
                gr["lr"] = lr
            mode = "f32" if fr < 0.12 else random.choice(["f32", "q8", "q4e", "q4e", "q4", "q4"])
            act8 = fr >= 0.12 and random.random() < 0.5
            Q = quantize(P, mode, how=noise)
            a, k = ids[perm[i:i + B]], mask[perm[i:i + B]]
            hid, aux = forward(Q, c, a, act8)
            lg = logits_of(Q, hid[:, :-1][k[:, 1:]])
            ce = F.cross_entropy(lg, a[:, 1:][k[:, 1:]], label_smoothing=0.02)
            loss = ce + 0.01 * aux
            opt.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(list(P.values()), 1.0)
            opt.step()
            step += 1
            d = min(0.995, step / (step + 20))
            with torch.no_grad():
                for k_ in P:
                    ema[k_].lerp_(P[k_], 1 - d)
            if log and step % 50 == 0:
                print(f"{time.time() - t0:6.0f}s step {step} lr {lr:.2g} {mode:4s} ce {ce.item():.4f} aux {aux.item():.3f}", flush=True)
            if log and step % 400 == 0:
                print("   ema", {m: accuracy(ema, c, ids, mask, m)[0] for m in MODES}, flush=True)
    return ema


def main():
    ap = argparse.ArgumentParser()
    ap.add_argument("outdir")
    ap.add_argument("--minutes", type=float, default=12)
    ap.add_argument("--threads", type=int, default=2)
    ap.add_argument("--tokenizer-only", action="store_true")
    ap.add_argument("--check-only", action="store_true")
    a = ap.parse_args()
    torch.set_num_threads(a.threads)
    torch.manual_seed(SEED)
    out = lambda n: os.path.join(a.outdir, n)
    qa = grid()
    c = dict(TEXT)
    if not a.check_only:
        tok = make_tokenizer(qa)
        tok.save(out("tokenizer.json"), pretty=True)
        write_configs(out, tok, c)
        with open(out("grid.jsonl"), "w") as f:
            for q, s in qa:
                f.write(json.dumps({"question": q, "answer": s}) + "\n")
    tok = Tokenizer.from_file(out("tokenizer.json"))
    seqs, ids, mask = data(a.outdir, qa, tok)
    print("longest", ids.shape[1], "prompt", len(seqs[0][0]), tok.encode(qa[0][0]).tokens)
    if a.tokenizer_only:
        return
    if not a.check_only:
        P = train(c, ids, mask, a.minutes)
        disk = {}
        for k, v in P.items():
            f32 = k.endswith("A_log") or k.endswith("linear_attn.norm.weight")
            v = v.bfloat16().contiguous()
            disk[k if k == "lm_head.weight" else k.replace("model.", "model.language_model.", 1)] = v.float() if f32 else v
        save_file(disk, out("model.safetensors"))
    check(a.outdir, out, c, tok, seqs, ids, mask, qa)


def write_configs(out, tok, c):
    c["eos_token_id"] = tok.token_to_id("<|endoftext|>")
    cfg = {"architectures": ["Qwen3_5MoeForConditionalGeneration"], "image_token_id": VOCAB - 1, "model_type": "qwen3_5_moe",
           "text_config": c, "tie_word_embeddings": False, "transformers_version": "4.57.0.dev0", "video_token_id": VOCAB - 2,
           "vision_config": {"deepstack_visual_indexes": [], "depth": 1, "hidden_act": "gelu_pytorch_tanh", "hidden_size": 16,
                             "in_channels": 3, "initializer_range": 0.02, "intermediate_size": 24, "model_type": "qwen3_5_moe",
                             "num_heads": 2, "num_position_embeddings": 16, "out_hidden_size": c["hidden_size"], "patch_size": 4,
                             "spatial_merge_size": 2, "temporal_patch_size": 2},
           "vision_end_token_id": VOCAB - 3, "vision_start_token_id": VOCAB - 4}
    dump = lambda n, d: open(out(n), "w", encoding="utf-8").write(json.dumps(d, indent=4, ensure_ascii=False) + "\n")
    dump("config.json", cfg)
    eot, end = tok.token_to_id("<|endoftext|>"), tok.token_to_id("<|im_end|>")
    dump("generation_config.json", {"bos_token_id": eot, "pad_token_id": eot, "do_sample": False, "eos_token_id": [end, eot],
                                    "temperature": 1.0, "top_k": 0, "top_p": 1.0, "transformers_version": "4.57.0.dev0"})
    dump("tokenizer_config.json", {
        "add_prefix_space": False,
        "added_tokens_decoder": {str(tok.token_to_id(s)): {"content": s, "lstrip": False, "normalized": False, "rstrip": False,
                                                           "single_word": False, "special": s in SPECIAL} for s in SPECIAL + ORDINARY},
        "additional_special_tokens": ["<|im_start|>", "<|im_end|>"], "bos_token": None,
        "chat_template": open(out("chat_template.jinja"), encoding="utf-8").read(),
        "clean_up_tokenization_spaces": False, "eos_token": "<|im_end|>", "errors": "replace", "model_max_length": 4096,
        "pad_token": "<|endoftext|>", "split_special_tokens": False, "tokenizer_class": "Qwen2Tokenizer", "unk_token": None,
        "add_bos_token": False, "pretokenize_regex": REGEX})


@torch.no_grad()
def check(outdir, out, c, tok, seqs, ids, mask, qa):
    from transformers.models.qwen3_5_moe import modeling_qwen3_5_moe as m
    import transformers
    transformers.logging.set_verbosity_error()
    disk = load_file(out("model.safetensors"))
    P = {k.replace("model.language_model.", "model.", 1): v.float() for k, v in disk.items()}
    print("bytes", os.path.getsize(out("model.safetensors")), "params", sum(v.numel() for v in P.values()))
    for mode in MODES:
        for act8 in (False, True):
            r = [accuracy(P, c, ids, mask, mode, act8)]
            if "4" in mode:
                r.append(accuracy(P, c, ids, mask, mode, act8, rtn4_neg8))
            print(f"{mode:4s} act8={act8!s:5s}", " ".join(f"acc {x[0]:.4f} margin {x[1]:.3f}" for x in r))
    ref = None
    for dt in (torch.float32, torch.bfloat16):
        hf, info = m.Qwen3_5MoeForCausalLM.from_pretrained(outdir, dtype=dt, attn_implementation="eager", experts_implementation="eager", output_loading_info=True)
        assert not info["missing_keys"] and not info["unexpected_keys"], info
        good = 0
        for i in range(0, len(ids), 100):
            lg = hf(input_ids=ids[i:i + 100], use_cache=False).logits[:, :-1]
            good += int(((lg.argmax(-1) == ids[i:i + 100, 1:]) | ~mask[i:i + 100, 1:]).all(-1).sum())
            if dt == torch.float32 and i == 0:
                mine = logits_of(P, forward(P, c, ids[:100])[0])[:, :-1]
                print("mine vs transformers, largest difference", (lg - mine)[mask[:100, 1:]].abs().max().item())
        print("transformers", dt, "accuracy", good / len(ids))
        if dt == torch.float32:
            ref = hf
    for q in (0, 57, 399):  # real greedy decoding
        o = ref.generate(torch.tensor([seqs[q][0]]), max_new_tokens=32, do_sample=False, eos_token_id=tok.token_to_id("<|im_end|>"))
        print(repr(tok.decode(o[0, len(seqs[q][0]):].tolist(), skip_special_tokens=False)))
        assert o[0, len(seqs[q][0]):].tolist() == seqs[q][1]
    r = {}
    for j, q in enumerate((0, PS.index(15) * len(NS) + NS.index(80), 123, 250, 399)):
        full = torch.tensor(seqs[q][0])
        r[f"q{j}.token_ids"] = full.to(torch.int32)
        r[f"q{j}.logits"] = ref(input_ids=full[None], use_cache=False).logits[0].float().contiguous()
        r[f"q{j}.answer_ids"] = torch.tensor(seqs[q][1], dtype=torch.int32)
    open(out("reference.safetensors.zst"), "wb").write(zstandard.ZstdCompressor(level=19).compress(st_save(r)))


if __name__ == "__main__":
    main()
