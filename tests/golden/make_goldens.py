#!/usr/bin/env python3
"""Write tiny random-weight Qwen3.5 / Qwen3-Next checkpoints and reference outputs.

    python make_goldens.py OUTDIR [model ...]

Every model directory is a checkpoint in the Hugging Face layout plus
goldens.safetensors.zst (see README.md for the fields).  The reference is
transformers' own code: torch fall-back kernels, eager attention, eager experts,
float32 arithmetic on weights that were rounded to bfloat16 first.
"""
import argparse, hashlib, io, json, math, os, sys

os.environ.setdefault("HF_HUB_OFFLINE", "1")
import numpy as np
import torch
import torch.nn.functional as F
import transformers
import zstandard
from safetensors.torch import save as st_save, save_file, load as st_load

PROMPT_LENS = [1, 5, 63, 64, 65, 130, 257]
GREEDY = 24
MARGIN = 1e-3  # smallest top-1/top-2 logit gap of a greedy step, in units of the largest |logit|
ROUTER_MARGIN = 3e-6  # smallest router gap over prompt and continuation

LIN, FULL = "linear_attention", "full_attention"


def text_cfg(**kw):
    """A text_config with the official field set."""
    d = {
        "attention_bias": False,
        "attention_dropout": 0.0,
        "attn_output_gate": True,
        "dtype": "bfloat16",
        "full_attention_interval": 4,
        "hidden_act": "silu",
        "initializer_range": 0.02,
        "linear_conv_kernel_dim": 4,
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-06,
        "use_cache": True,
        "mtp_num_hidden_layers": 1,
        "mtp_use_dedicated_embeddings": False,
        "mamba_ssm_dtype": "float32",
    }
    d.update(kw)
    d["eos_token_id"] = d["vocab_size"] - 1
    n, iv = d["num_hidden_layers"], d["full_attention_interval"]
    d.setdefault("layer_types", [FULL if (i + 1) % iv == 0 else LIN for i in range(n)])
    if d["layer_types"] == "absent":
        del d["layer_types"]
    half = int(d["head_dim"] * d.pop("_partial", 0.25)) // 2
    sec = [half - 2 * (half // 3), half // 3, half // 3]
    d["rope_parameters"] = {
        "mrope_interleaved": True,
        "mrope_section": sec,
        "rope_type": "default",
        "rope_theta": d.pop("_theta", 10000000),
        "partial_rotary_factor": 2 * half / d["head_dim"],
    }
    return d


def vision_cfg(mt, out):
    return {
        "deepstack_visual_indexes": [], "depth": 1, "hidden_act": "gelu_pytorch_tanh", "hidden_size": 16,
        "in_channels": 3, "initializer_range": 0.02, "intermediate_size": 24, "model_type": mt, "num_heads": 2,
        "num_position_embeddings": 16, "out_hidden_size": out, "patch_size": 4, "spatial_merge_size": 2,
        "temporal_patch_size": 2,
    }


def nested(mt, arch, text, tied, tied_in_text=False):
    text = dict(text)
    text["model_type"] = mt + "_text"
    if tied_in_text:
        text["tie_word_embeddings"] = tied
    v = text["vocab_size"]
    return {
        "architectures": [arch],
        "image_token_id": v - 4,
        "model_type": mt,
        "text_config": text,
        "tie_word_embeddings": tied,
        "transformers_version": "4.57.0.dev0",
        "video_token_id": v - 3,
        "vision_config": vision_cfg(mt, text["hidden_size"]),
        "vision_end_token_id": v - 5,
        "vision_start_token_id": v - 6,
    }


def moe(**kw):
    return nested("qwen3_5_moe", "Qwen3_5MoeForConditionalGeneration",
                  text_cfg(mlp_only_layers=[], router_aux_loss_coef=0.001, **{k: v for k, v in kw.items() if k[0] != "T"}),
                  kw.get("Ttied", False), kw.get("Tin", False))


def dense(**kw):
    return nested("qwen3_5", "Qwen3_5ForConditionalGeneration",
                  text_cfg(**{k: v for k, v in kw.items() if k[0] != "T"}), kw["Ttied"], kw.get("Tin", False))


MODELS = {
    # value/key head ratio 3, differing linear head dims, hidden size no multiple of 32, sharded, F32 tensors, mtp+visual
    "moe-ratio3": dict(seed=11, prefix="model.language_model.", shards=3, f32=True, extras=True, cfg=moe(
        vocab_size=151, hidden_size=40, num_hidden_layers=4, num_attention_heads=6, num_key_value_heads=2, head_dim=32,
        linear_num_key_heads=2, linear_num_value_heads=6, linear_key_head_dim=16, linear_value_head_dim=24,
        num_experts=24, num_experts_per_tok=3, moe_intermediate_size=40, shared_expert_intermediate_size=56)),
    # irregular layer types, tied, unfused experts, short prefix
    "moe-irregular": dict(seed=12, prefix="model.", unfused=True, cfg=moe(
        vocab_size=97, hidden_size=64, num_hidden_layers=6, num_attention_heads=4, num_key_value_heads=4, head_dim=16,
        _partial=0.5, _theta=1000000, layer_types=[FULL, LIN, LIN, FULL, FULL, LIN],
        linear_num_key_heads=2, linear_num_value_heads=2, linear_key_head_dim=16, linear_value_head_dim=16,
        num_experts=16, num_experts_per_tok=4, moe_intermediate_size=12, shared_expert_intermediate_size=32, Ttied=True)),
    # one expert of seven, odd numbers; layer_types absent: derived from full_attention_interval
    "moe-one": dict(seed=13, prefix="model.language_model.", f32=True, cfg=moe(
        vocab_size=61, hidden_size=37, num_hidden_layers=2, num_attention_heads=3, num_key_value_heads=1, head_dim=20,
        _partial=0.3, full_attention_interval=2, layer_types="absent",
        linear_num_key_heads=1, linear_num_value_heads=5, linear_key_head_dim=13, linear_value_head_dim=7,
        num_experts=7, num_experts_per_tok=1, moe_intermediate_size=19, shared_expert_intermediate_size=11)),
    # every expert chosen
    "moe-all": dict(seed=14, prefix="model.language_model.", cfg=moe(
        vocab_size=41, hidden_size=32, num_hidden_layers=3, num_attention_heads=2, num_key_value_heads=1, head_dim=32,
        full_attention_interval=3, linear_num_key_heads=2, linear_num_value_heads=4, linear_key_head_dim=8,
        linear_value_head_dim=8, num_experts=5, num_experts_per_tok=5, moe_intermediate_size=24,
        shared_expert_intermediate_size=16)),
    "dense-tied": dict(seed=15, prefix="model.language_model.", f32=True, cfg=dense(
        vocab_size=103, hidden_size=64, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=1, head_dim=32,
        linear_num_key_heads=4, linear_num_value_heads=4, linear_key_head_dim=16, linear_value_head_dim=16,
        intermediate_size=72, Ttied=True, Tin=True)),
    "dense-untied": dict(seed=16, prefix="model.language_model.", shards=2, cfg=dense(
        vocab_size=89, hidden_size=80, num_hidden_layers=4, num_attention_heads=6, num_key_value_heads=2, head_dim=24,
        linear_num_key_heads=2, linear_num_value_heads=6, linear_key_head_dim=16, linear_value_head_dim=16,
        intermediate_size=100, Ttied=False)),
    # packed Qwen3-Next projections, unfused experts, flat config
    "next-packed": dict(seed=17, prefix="model.", unfused=True, cfg={
        "architectures": ["Qwen3NextForCausalLM"], "attention_bias": False, "attention_dropout": 0.0,
        "decoder_sparse_step": 1, "eos_token_id": 82, "full_attention_interval": 4, "head_dim": 16,
        "hidden_act": "silu", "hidden_size": 48, "initializer_range": 0.02, "intermediate_size": 96,
        "linear_conv_kernel_dim": 4, "linear_key_head_dim": 16, "linear_num_key_heads": 3,
        "linear_num_value_heads": 6, "linear_value_head_dim": 8, "max_position_embeddings": 4096,
        "mlp_only_layers": [], "model_type": "qwen3_next", "moe_intermediate_size": 20, "norm_topk_prob": True,
        "num_attention_heads": 8, "num_experts": 12, "num_experts_per_tok": 3, "num_hidden_layers": 4,
        "num_key_value_heads": 2, "output_router_logits": False, "partial_rotary_factor": 0.25,
        "rms_norm_eps": 1e-06, "rope_scaling": None, "rope_theta": 5000000, "router_aux_loss_coef": 0.001,
        "shared_expert_intermediate_size": 24, "tie_word_embeddings": False, "torch_dtype": "bfloat16",
        "transformers_version": "4.57.0.dev0", "use_cache": True, "use_sliding_window": False, "vocab_size": 83}),
    # the head structure of 35B-A3B scaled down
    "moe-35b-shape": dict(seed=18, prefix="model.language_model.", shards=2, f32=True, cfg=moe(
        vocab_size=101, hidden_size=64, num_hidden_layers=8, num_attention_heads=16, num_key_value_heads=2, head_dim=16,
        linear_num_key_heads=4, linear_num_value_heads=8, linear_key_head_dim=8, linear_value_head_dim=8,
        num_experts=32, num_experts_per_tok=8, moe_intermediate_size=8, shared_expert_intermediate_size=16)),
}


def family(cfg):
    from transformers.models.qwen3_5 import modeling_qwen3_5 as d, configuration_qwen3_5 as dc
    from transformers.models.qwen3_5_moe import modeling_qwen3_5_moe as m, configuration_qwen3_5_moe as mc
    from transformers.models.qwen3_next import modeling_qwen3_next as n, configuration_qwen3_next as nc
    return {
        "qwen3_5": (d.Qwen3_5ForCausalLM, dc.Qwen3_5TextConfig),
        "qwen3_5_moe": (m.Qwen3_5MoeForCausalLM, mc.Qwen3_5MoeTextConfig),
        "qwen3_next": (n.Qwen3NextForCausalLM, nc.Qwen3NextConfig),
    }[cfg["model_type"]]


def make_model(cfg):
    cls, ccls = family(cfg)
    t = dict(cfg.get("text_config", cfg))
    t["tie_word_embeddings"] = cfg["tie_word_embeddings"]
    t.pop("torch_dtype", None), t.pop("dtype", None)
    c = ccls.from_dict(t) if hasattr(ccls, "from_dict") else ccls(**t)
    c._attn_implementation = "eager"
    c._experts_implementation = "eager"
    return cls(c).eval()


@torch.no_grad()
def randomize(model, seed, tied):
    g = torch.Generator().manual_seed(seed)
    rn = lambda p, s, mean=0.0: p.copy_(torch.randn(p.shape, generator=g) * s + mean)
    for name, p in sorted(model.named_parameters()):
        if name.endswith("linear_attn.norm.weight"):
            rn(p, 0.25, 1.0)
        elif name.endswith("k_norm.weight") or name.endswith("q_norm.weight"):
            rn(p, 0.2, 0.4)
        elif "norm" in name:
            rn(p, 0.2)
        elif name.endswith("A_log"):
            p.copy_(torch.log(torch.rand(p.shape, generator=g) * 15.7 + 0.3))
        elif name.endswith("dt_bias"):
            dt = torch.exp(torch.rand(p.shape, generator=g) * math.log(200) + math.log(0.001))
            p.copy_(dt + torch.log(-torch.expm1(-dt)))
        elif name.endswith("conv1d.weight"):
            rn(p, 0.6)
        elif name.endswith("embed_tokens.weight"):
            rn(p, 3.2 / math.sqrt(p.shape[1]) if tied else 1.0)
        elif name.endswith("lm_head.weight"):
            rn(p, 3.2 / math.sqrt(p.shape[1]))
        elif name.endswith("mlp.gate.weight"):
            rn(p, 1.8 / math.sqrt(p.shape[1]))
        elif name.endswith("shared_expert_gate.weight"):
            rn(p, 1.0 / math.sqrt(p.shape[1]))
        else:
            out = any(x in name for x in ("o_proj", "out_proj", "down_proj"))
            rn(p, (1.5 if "in_proj_b" in name else 0.8 if out else 1.1) / math.sqrt(p.shape[-1]))
    if tied:
        assert model.lm_head.weight.data_ptr() == model.model.embed_tokens.weight.data_ptr()
    for p in model.parameters():
        p.copy_(p.bfloat16().float())


def disk_tensors(model, spec):
    """state dict -> tensors as they stand in the files"""
    cfg, pre, out = spec["cfg"], spec["prefix"], {}
    for k, v in model.state_dict().items():
        if k == "lm_head.weight":
            if not cfg["tie_word_embeddings"]:
                out[k] = v.bfloat16()
            continue
        assert k.startswith("model."), k
        f32 = spec.get("f32") and (k.endswith("A_log") or k.endswith("linear_attn.norm.weight"))
        v = v.clone() if f32 else v.bfloat16()
        name = pre + k[len("model."):]
        if spec.get("unfused") and ".experts." in k:
            base = name[: name.rindex(".")]
            for e in range(v.shape[0]):
                if k.endswith("gate_up_proj"):
                    gate, up = v[e].chunk(2, dim=0)
                    out[f"{base}.{e}.gate_proj.weight"] = gate.contiguous().clone()
                    out[f"{base}.{e}.up_proj.weight"] = up.contiguous().clone()
                else:
                    out[f"{base}.{e}.down_proj.weight"] = v[e].clone()
        else:
            out[name] = v.contiguous()
    if spec.get("extras"):
        g = torch.Generator().manual_seed(spec["seed"] + 1000)
        h = cfg["text_config"]["hidden_size"]
        for n, s in [("mtp.fc.weight", (h, 2 * h)), ("mtp.norm.weight", (h,)), ("mtp.pre_fc_norm_embedding.weight", (h,)),
                     ("mtp.pre_fc_norm_hidden.weight", (h,)), ("mtp.layers.0.input_layernorm.weight", (h,)),
                     ("mtp.layers.0.self_attn.k_norm.weight", (32,)), ("mtp.layers.0.mlp.experts.gate_up_proj", (2, 8, h)),
                     ("mtp.layers.0.mlp.experts.down_proj", (2, h, 4)),
                     ("mtp.layers.0.mlp.experts.3.gate_proj.weight", (4, h)),
                     ("model.visual.patch_embed.proj.weight", (4, 3, 2, 4, 4)), ("model.visual.patch_embed.proj.bias", (4,)),
                     ("model.visual.blocks.0.norm1.weight", (16,)), ("model.visual.blocks.0.attn.qkv.weight", (48, 16))]:
            out[n] = torch.randn(s, generator=g).bfloat16()
    return out


def write_checkpoint(dirname, tensors, cfg, shards):
    os.makedirs(dirname, exist_ok=True)
    with open(os.path.join(dirname, "config.json"), "w") as f:
        json.dump(cfg, f, indent=4)
        f.write("\n")
    if shards <= 1:
        save_file(tensors, os.path.join(dirname, "model.safetensors"))
        return
    # largest first, as the official shards do, so one layer spreads over several files
    order = sorted(tensors, key=lambda k: (-tensors[k].numel(), k))
    nbytes = lambda k: tensors[k].numel() * tensors[k].element_size()
    total = sum(map(nbytes, order))
    wm, done, files = {}, 0, [{} for _ in range(shards)]
    for k in order:
        i = min(shards - 1, done * shards // total)
        files[i][k] = tensors[k]
        wm[k] = f"model.safetensors-{i + 1:05d}-of-{shards:05d}.safetensors"
        done += nbytes(k)
    for i, t in enumerate(files):
        save_file(t, os.path.join(dirname, f"model.safetensors-{i + 1:05d}-of-{shards:05d}.safetensors"))
    with open(os.path.join(dirname, "model.safetensors.index.json"), "w") as f:
        json.dump({"metadata": {"total_size": float(total)}, "weight_map": dict(sorted(wm.items()))}, f, indent=2)
        f.write("\n")


class RouterTap:
    def __init__(self, model, top_k):
        self.top_k, self.rows, self.hooks = top_k, [], []
        for n, m in model.named_modules():
            if n.endswith("mlp.gate"):
                self.hooks.append(m.register_forward_hook(self.hook))

    def hook(self, mod, inp, out):
        p = out[0].float().softmax(-1)
        k = self.top_k
        if k < p.shape[-1]:
            v = p.topk(k + 1, -1).values
            self.rows.append(v[:, k - 1] - v[:, k])

    def close(self, n):
        for h in self.hooks:
            h.remove()
        if not self.rows:
            return torch.ones(n)
        if len({len(r) for r in self.rows}) > 1:  # prefill and decode steps mixed: only the minimum is asked for
            return torch.cat(self.rows).float()
        return torch.stack(self.rows).min(0).values.float()


@torch.no_grad()
def forward(model, ids):
    return model(input_ids=ids[None], use_cache=False).logits[0].float()


@torch.no_grad()
def greedy(model, ids, n, eos):
    """cached decode; None if some step is too close to call (or hits eos)"""
    out, toks, steps = model(input_ids=ids[None], use_cache=True), [], []
    while True:
        lg = out.logits[0, -1].float()
        top = lg.topk(2)
        if (top.values[0] - top.values[1]) <= MARGIN * lg.abs().max():
            return None
        t = int(top.indices[0])
        if t == eos:
            return None
        toks.append(t), steps.append(lg)
        if len(toks) == n:
            return torch.tensor(toks), torch.stack(steps)
        out = model(input_ids=torch.tensor([[t]]), past_key_values=out.past_key_values, use_cache=True)


def check_reload(dirname, spec, model, probe):
    """the files must be what transformers reads"""
    cls, _ = family(spec["cfg"])
    unfused_35 = spec.get("unfused") and spec["cfg"]["model_type"] == "qwen3_5_moe"
    if unfused_35:  # transformers has no unfused form for this family: fuse by hand, then demand an exact key match
        from safetensors.torch import load_file
        sd = load_file(os.path.join(dirname, "model.safetensors"))
        E = spec["cfg"]["text_config"]["num_experts"]
        for k in [k for k in sd if ".experts.0.gate_proj" in k]:
            b = k[: k.index(".0.gate_proj")]
            sd[b + ".gate_up_proj"] = torch.stack([torch.cat([sd.pop(f"{b}.{e}.gate_proj.weight"), sd.pop(f"{b}.{e}.up_proj.weight")]) for e in range(E)])
            sd[b + ".down_proj"] = torch.stack([sd.pop(f"{b}.{e}.down_proj.weight") for e in range(E)])
        m2 = make_model(spec["cfg"])
        r = m2.load_state_dict({k: v.float() for k, v in sd.items()}, strict=False)
        missing, unexpected = [k for k in r.missing_keys if k != "lm_head.weight"], r.unexpected_keys
        m2.tie_weights()
        how = "by hand"
    else:
        m2, info = cls.from_pretrained(dirname, dtype=torch.float32, attn_implementation="eager",
                                       experts_implementation="eager", output_loading_info=True)
        missing, unexpected, how = list(info["missing_keys"]), list(info["unexpected_keys"]), "from_pretrained"
        assert not info.get("mismatched_keys"), info["mismatched_keys"]
    assert not missing and not unexpected, (missing, unexpected)
    d = (forward(m2.eval(), probe) - forward(model, probe)).abs().max().item()
    assert d == 0.0, d
    return how


def run(name, spec, outdir):
    cfg = spec["cfg"]
    tc = cfg.get("text_config", cfg)
    dirname = os.path.join(outdir, name)
    model = make_model(cfg)
    model.float()
    randomize(model, spec["seed"], cfg["tie_word_embeddings"])
    write_checkpoint(dirname, disk_tensors(model, spec), cfg, spec.get("shards", 1))
    bf = make_model(cfg)
    bf.load_state_dict(model.state_dict())
    bf = bf.bfloat16().eval()
    rng = torch.Generator().manual_seed(spec["seed"] * 7919)
    V, eos = tc["vocab_size"], tc["eos_token_id"]
    out, klds, mins, redraws, cdiff = {}, [], [], 0, 0.0
    for n in PROMPT_LENS:
        while True:
            ids = torch.randint(0, V, (n,), generator=rng)
            tap = RouterTap(model, tc.get("num_experts_per_tok", 1))
            r = greedy(model, ids, GREEDY, eos)
            if tap.close(n).min() > ROUTER_MARGIN and r is not None:
                break
            redraws += 1
        toks, steps = r
        tap = RouterTap(model, tc.get("num_experts_per_tok", 1))
        lg = forward(model, ids)
        margin = tap.close(n)
        # cached decode == full forward
        full = forward(model, torch.cat([ids, toks]))
        d = max((full[n - 1:-1] - steps).abs().max().item(), (full[:n] - lg).abs().max().item()) / lg.abs().max().item()
        cdiff = max(cdiff, d)
        assert d < 2e-4, (name, n, d)
        assert torch.equal(full[n - 1:-1].argmax(-1), toks)
        lp, lq = lg.double().log_softmax(-1), forward(bf, ids).double().log_softmax(-1)
        kld = (lp.exp() * (lp - lq)).sum(-1).float()
        out[f"p{n}.token_ids"] = ids.to(torch.int32)
        out[f"p{n}.logits"] = lg.contiguous()
        out[f"p{n}.greedy"] = toks.to(torch.int32)
        out[f"p{n}.bf16_kld"] = kld
        out[f"p{n}.router_margin"] = margin
        klds.append(kld), mins.append(margin)
    blob = zstandard.ZstdCompressor(level=19).compress(st_save(out))
    with open(os.path.join(dirname, "goldens.safetensors.zst"), "wb") as f:
        f.write(blob)
    back = st_load(zstandard.ZstdDecompressor().decompress(blob))
    assert all(torch.equal(back[k], out[k]) for k in out)
    how = check_reload(dirname, spec, model, out["p65.token_ids"].long())
    k = torch.cat(klds)
    lg = torch.cat([out[f"p{n}.logits"] for n in PROMPT_LENS])
    ent = -(lg.log_softmax(-1).exp() * lg.log_softmax(-1)).sum(-1).mean()
    rep = dict(params=sum(p.numel() for p in model.parameters()), logit_std=round(lg.std().item(), 3),
               mean_entropy=round(ent.item(), 3), bf16_kld_mean=float(f"{k.mean():.3g}"),
               bf16_kld_max=float(f"{k.max():.3g}"), router_margin_min=float(f"{torch.cat(mins).min():.3g}"),
               redraws=redraws, cached_vs_full_rel=float(f"{cdiff:.2g}"), reload=how)
    print(name, json.dumps(rep), flush=True)
    return rep


def manifest(outdir, reports):
    path = os.path.join(outdir, "manifest.json")
    old = {}
    if os.path.exists(path):
        old = json.load(open(path)).get("models", {})
    old.update(reports)
    files = {}
    for root, _, names in os.walk(outdir):
        for n in sorted(names):
            p = os.path.join(root, n)
            rel = os.path.relpath(p, outdir)
            if rel == "manifest.json":
                continue
            b = open(p, "rb").read()
            files[rel] = {"bytes": len(b), "sha256": hashlib.sha256(b).hexdigest()}
    import tokenizers, safetensors, jinja2
    doc = {"generator": {"python": sys.version.split()[0], "torch": torch.__version__, "transformers": transformers.__version__,
                         "tokenizers": tokenizers.__version__, "safetensors": safetensors.__version__,
                         "numpy": np.__version__, "zstandard": zstandard.__version__, "jinja2": jinja2.__version__},
           "models": {k: old[k] for k in sorted(old)}, "files": {k: files[k] for k in sorted(files)}}
    with open(path, "w") as f:
        json.dump(doc, f, indent=1)
        f.write("\n")
    print("total bytes", sum(v["bytes"] for v in files.values()))


def main():
    ap = argparse.ArgumentParser()
    ap.add_argument("outdir")
    ap.add_argument("models", nargs="*")
    ap.add_argument("--manifest-only", action="store_true")
    a = ap.parse_args()
    torch.set_num_threads(2)
    transformers.logging.set_verbosity_error()
    reports = {}
    if not a.manifest_only:
        for n in a.models or MODELS:
            reports[n] = run(n, MODELS[n], a.outdir)
    manifest(a.outdir, reports)


if __name__ == "__main__":
    main()
