"""Launch scripts of Megatron-LM and MindSpeed-LLM as workloads."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Dict, List, Tuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loopmoe_train.errors import Refused
from loopmoe_train.sim.machine import machine_of, named
from loopmoe_train.sim.scripts.launch import Script, load, read, workload_of_script
from loopmoe_train.sim.shape import Attention, Ffn
from loopmoe_train.sim.step import estimate
from loopmoe_train.sim.workload import IMBALANCE, Memory, Overlap, Workload
from loopmoe_train.spec.grid import Grid

# In the style of MindSpeed-LLM: strings of options, continued by backslashes.
DENSE = r"""
#!/bin/bash
source /usr/local/Ascend/ascend-toolkit/set_env.sh
export CUDA_DEVICE_MAX_CONNECTIONS=1
export PYTORCH_NPU_ALLOC_CONF=expandable_segments:True

NPUS_PER_NODE=8
MASTER_ADDR=localhost   # of the first node
NNODES=4
NODE_RANK=0
WORLD_SIZE=$(($NPUS_PER_NODE*$NNODES))

TOKENIZER_PATH="your tokenizer path"
TP=8
PP=2
SEQ_LEN=4096
MBS=1
GBS=64

DISTRIBUTED_ARGS="
    --nproc_per_node $NPUS_PER_NODE \
    --nnodes $NNODES \
    --node_rank $NODE_RANK \
    --master_addr $MASTER_ADDR
"

GPT_ARGS="
    --tensor-model-parallel-size ${TP} \
    --pipeline-model-parallel-size ${PP} \
    --sequence-parallel \
    --num-layers 32 \
    --hidden-size 8192 \
    --ffn-hidden-size 28672 \
    --num-attention-heads 64 \
    --group-query-attention \
    --num-query-groups 8 \
    --seq-length ${SEQ_LEN} \
    --micro-batch-size ${MBS} \
    --global-batch-size ${GBS} \
    --tokenizer-name-or-path ${TOKENIZER_PATH} \
    --padded-vocab-size 128256 \
    --make-vocab-size-divisible-by 1 \
    --untie-embeddings-and-output-weights \
    --position-embedding-type rope \
    --normalization RMSNorm \
    --swiglu \
    --use-flash-attn \
    --use-ascend-mc2 \
    --use-distributed-optimizer \
    --reuse-fp32-param \
    --overlap-grad-reduce \
    --overlap-param-gather \
    --recompute-granularity full \
    --recompute-method block \
    --recompute-num-layers 4 \
    --hidden-dropout 0.0 \
    --lr 1.25e-6 \
    --bf16
"

python -m torch.distributed.launch $DISTRIBUTED_ARGS pretrain_gpt.py \
    $GPT_ARGS \
    --distributed-backend nccl \
    --save ./ckpt | tee logs/train_dense.log
"""

MLA = r"""
NPUS_PER_NODE=16
NNODES=4
TP=2; PP=4; EP=16; CP=1
NUM_LAYERS=16
NOOP="3,15"

DISTRIBUTED_ARGS="--nproc_per_node $NPUS_PER_NODE --nnodes $NNODES"
MLA_ARGS="
    --multi-latent-attention \
    --qk-pos-emb-head-dim 64 \
    --qk-head-dim 128 \
    --q-lora-rank 1536 \
    --kv-lora-rank 512 \
    --v-head-dim 128 \
"
MOE_ARGS="
    --moe-grouped-gemm \
    --moe-token-dispatcher-type alltoall \
    --first-k-dense-replace 2 \
    --moe-layer-freq 1 \
    --n-shared-experts 2 \
    --num-experts 64 \
    --moe-router-topk 8 \
    --moe-ffn-hidden-size 2048 \
    --expert-model-parallel-size ${EP} \
    --expert-tensor-parallel-size 1 \
    --fix-router \
    --moe-fb-overlap \
    --moe-zero-memory level0
"
MEM_ARGS="
    --swap-optimizer \
    --swap-attention \
    --recompute-activation-function \
    --recompute-norm \
"
GPT_ARGS="
    --use-flash-attn \
    --tensor-model-parallel-size ${TP} \
    --pipeline-model-parallel-size ${PP} \
    --num-layers-per-virtual-pipeline-stage 2 \
    --noop-layers ${NOOP} \
    --context-parallel-size ${CP} \
    --sequence-parallel \
    --num-layers ${NUM_LAYERS} \
    --hidden-size 7168 \
    --ffn-hidden-size 18432 \
    --num-attention-heads 128 \
    --seq-length 4096 \
    --micro-batch-size 1 \
    --global-batch-size 128 \
    --vocab-size 129280 \
    --make-vocab-size-divisible-by 1 \
    --untie-embeddings-and-output-weights \
    --swiglu \
    --hidden-dropout 0.0 \
    --use-distributed-optimizer \
    --mtp-num-layers 1 \
    --bf16
"
torchrun $DISTRIBUTED_ARGS pretrain_gpt.py $GPT_ARGS $MLA_ARGS $MOE_ARGS $MEM_ARGS
"""

# In the style of Megatron-LM: arrays, arithmetic, defaults of everything that can have one.
GPT3 = r"""#!/bin/bash
# Eight A100 a node
GPUS_PER_NODE=8
NUM_NODES=${SLURM_NNODES:-16}
WORLD_SIZE=$(($GPUS_PER_NODE*$NUM_NODES))
TP=8 PP=${PP:-16}
LAYERS=$(( PP * 6 ))
DP=$((WORLD_SIZE / (TP * PP)))
VOCAB_FILE=$1 #<Specify path to file>/gpt2-vocab.json
MERGE_FILE=$2

DISTRIBUTED_ARGS=(
    --nproc_per_node $GPUS_PER_NODE
    --nnodes $NUM_NODES
)
GPT_MODEL_ARGS=(
    --num-layers $LAYERS
    --hidden-size 12288
    --num-attention-heads 96
    --seq-length 2048
    --attention-backend auto # Can use (flash/fused/unfused/local)
)
TRAINING_ARGS=(
    --micro-batch-size 1
    --global-batch-size $((DP * 96))
    --fp16
    --lr 6.0e-5
)
MODEL_PARALLEL_ARGS=(
	--tensor-model-parallel-size $TP
	--pipeline-model-parallel-size $PP
)
DATA_ARGS=( --vocab-file $VOCAB_FILE --merge-file "$MERGE_FILE" --split 949,50,1 )
if [ "$TP" -gt 1 ]; then
    MODEL_PARALLEL_ARGS+=(--sequence-parallel)
fi

torchrun ${DISTRIBUTED_ARGS[@]} pretrain_gpt.py \
    ${GPT_MODEL_ARGS[@]} \
    ${TRAINING_ARGS[@]} \
    ${MODEL_PARALLEL_ARGS[@]} \
    "${DATA_ARGS[@]}"
"""

NASTY = r"""
B=2
MICRO=${A:-$B}                       # from another variable
LAYERS=${LAYERS:-"$((B * 4))"}
RUN="it's run #1; rm -rf / # \"x\""
UNSAFE=$(touch made-by-the-script; echo "8)")`touch made-by-the-script`
FREQ="([0]*1+[1]*$((LAYERS-1)))"
ARGS=" --hidden-size 1024 --num-attention-heads 16 \
  --seq-length 2048 # --seq-length 4096 \
"
EXPERTS=(
    --num-experts 8   # --num-experts 16
    # --moe-router-topk 4
    --moe-router-topk 2
    --moe-layer-freq "$FREQ" --moe-shared-expert-intermediate-size 512
    '--moe-ffn-hidden-size' "256"
)
CMD="torchrun --nproc-per-node=4 $PWD/pretrain_gpt.py"
echo "torchrun --num-layers 99 pretrain_gpt.py"
# torchrun pretrain_gpt.py --num-layers 98
eval "true $CMD"; $CMD --num-layers 3 --num-layers $LAYERS $ARGS "${EXPERTS[@]}" \
    --micro-batch-size $MICRO \
    --wandb-exp-name "$RUN" --save "/tmp/a b#c" --vocab-size 32000 $UNSAFE \
    --expert-model-parallel-size 4 2>&1 | tee "log#$RUN"
"""


def workload(text: str, **variables: str) -> Workload:
    return workload_of_script(read(text, "run.sh", variables))


def held(work: Workload, preset: str) -> Tuple[float, List[Tuple[float, float, float]]]:
    """GPU-free check of a step: its time, and weights, gradients and states of every stage."""
    done = estimate(work, machine_of(named(preset)))
    assert 0 < done.seconds < math.inf and 0 < done.peak < math.inf
    return done.seconds, [(one.weights, one.gradients, one.states) for one in done.memory]


def test_a_dense_model() -> None:
    script = read(DENSE, "pretrain_dense.sh")
    work = workload_of_script(script)
    assert script.preset == "ascend_a2" and script.unused == script.lost == ()
    assert work.grid == Grid.of(32, tensor=8, pipeline=2)
    assert work.slots == (tuple(range(16)), tuple(range(16, 32)))
    shape = work.shape
    assert (shape.name, shape.hidden, shape.vocab) == ("pretrain_dense.sh", 8192, 128256)
    assert len(shape.layers) == 32 and set(shape.layers) == {shape.layers[0]}
    assert shape.layers[0].attention == Attention(64, 8, 128, 128, 128)
    assert shape.layers[0].ffn == Ffn(28672)
    assert not shape.tied and shape.mtp == 0
    # grouped attention, SwiGLU and both norms of a layer; embedding, head, final norm
    layer = 8192 * 128 * (64 + 8 + 8 + 64) + 3 * 8192 * 28672 + 2 * 8192
    assert shape.parameters() == 32 * layer + 2 * 128256 * 8192 + 8192
    assert (work.sequence, work.micro_batch, work.global_batch) == (4096, 1, 64)
    assert work.micro_batches == 32
    assert (work.precision, work.states, work.gradient) == ("bf16", 12, 4)
    assert work.sharding == "optimizer" and work.sequence_parallel and not work.dropout
    assert work.memory == Memory(full=4, reuse_fp32=True)
    assert work.overlap == Overlap(gradients=True, weights=True, pipeline=False, tensor=True)
    _, stages = held(work, "ascend_a2")
    first = (16 * layer + 128256 * 8192) / 8
    assert stages[0] == pytest.approx((2 * first, 4 * first, 10 * first / 2))
    last = first + 8192  # the final norm is whole on every rank
    assert stages[1] == pytest.approx((2 * last, 4 * last, 10 * last / 2))


def test_a_mixture_of_experts_with_latent_attention() -> None:
    script = read(MLA, "moe.sh")
    work = workload_of_script(script)
    assert script.preset == "ascend_a3" and script.unused == ()
    assert work.grid == Grid.of(64, tensor=2, pipeline=4, expert=16)
    assert work.grid.expert_data == 1 and work.grid.data == 8
    # 16 places in 4 stages of 2 virtual ones, of which the 4th and the last do nothing
    assert work.slots == ((0, 1), (2,), (3, 4), (5, 6), (7, 8), (9, 10), (11, 12), (13,))
    assert work.chunks == 2
    shape = work.shape
    attention = Attention(128, 128, 192, 128, 64, 1536, 512)
    assert {layer.attention for layer in shape.layers} == {attention}
    experts = Ffn(2048, experts=64, top_k=8, shared=4096)
    assert [layer.ffn for layer in shape.layers] == [Ffn(18432)] * 2 + [experts] * 12
    assert shape.mtp == 1 and shape.vocab == 129280
    assert work.exchange == "alltoall" and work.imbalance == 1.0 and not work.probs_first
    assert work.memory == Memory(
        modules=frozenset({"act", "norm"}), swap=frozenset({"optimizer", "attention"})
    )
    assert work.overlap == Overlap(pipeline=True, experts=0.8)
    _, stages = held(work, "ascend_a3")
    latent = 7168 * (1536 + 512 + 64)  # whole on every rank of tensor parallelism
    split = 1536 * 128 * 192 + 512 * 128 * 256 + 128 * 128 * 7168 + 2 * 7168
    dense = latent + (split + 3 * 7168 * 18432) / 2
    routed = latent + (split + 3 * 7168 * 4096 + 7168 * 64) / 2
    expert = 64 * 3 * 7168 * 2048 / 16
    first = 2 * dense + 2 * (routed + expert) + 129280 * 7168 / 2
    assert stages[0] == pytest.approx((2 * first, 4 * first, 0))


def test_a_model_of_defaults() -> None:
    script = read(GPT3)
    work = workload_of_script(script)
    assert script.preset == "a100"
    assert script.options["vocab-file"] == () and script.options["merge-file"] == ()
    assert work.grid == Grid.of(128, tensor=8, pipeline=16)
    assert work.slots == tuple(tuple(range(6 * n, 6 * n + 6)) for n in range(16))
    shape = work.shape
    assert shape.layers == (shape.layers[0],) * 96
    assert shape.layers[0].attention == Attention(96, 96, 128, 128)  # learned positions
    assert shape.layers[0].ffn == Ffn(4 * 12288, gated=False)
    assert shape.tied and shape.vocab == 51200  # 50257, padded to 128 x 8 ranks
    layer = 4 * 12288**2 + 8 * 12288**2 + 2 * 12288
    assert shape.parameters() == 96 * layer + 51200 * 12288 + 12288
    assert (work.global_batch, work.micro_batches) == (96, 96)
    assert (work.gradient, work.states, work.sharding) == (2, 12, "none")
    assert work.dropout and work.sequence_parallel and work.probs_first and work.fused_gradient
    assert work.memory == Memory() and work.overlap == Overlap(pipeline=False)
    _, stages = held(work, "a100")
    inner = 6 * layer / 8
    assert stages[1] == pytest.approx((2 * inner, 2 * inner, 12 * inner))
    # the environment wins where the script lets it
    wide = workload(GPT3, SLURM_NNODES="4", PP="2")
    assert wide.grid == Grid.of(32, tensor=8, pipeline=2)
    assert (len(wide.shape.layers), wide.global_batch) == (12, 192)


def test_a_nasty_script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    script = read(NASTY)
    assert list(tmp_path.iterdir()) == []
    assert script.options["wandb-exp-name"] == ('it\'s run #1; rm -rf / # "x"',)
    assert script.options["save"] == ("/tmp/a b#c",) and script.variables["UNSAFE"] == ""
    assert script.variables["FREQ"] == "([0]*1+[1]*7)" and script.preset == ""
    work = workload_of_script(script)
    assert len(work.shape.layers) == 8 and work.sequence == 4096  # "#" in a string is no comment
    assert [bool(layer.ffn.experts) for layer in work.shape.layers] == [False] + [True] * 7
    assert work.shape.layers[7].ffn == Ffn(256, False, 8, 2, 512)
    assert work.shape.layers[0].ffn == Ffn(4096, False)
    assert (work.micro_batch, work.global_batch, work.precision) == (2, 8, "fp32")
    assert (work.states, work.gradient, work.exchange) == (8, 4, "allgather")
    assert work.imbalance == IMBALANCE and work.shape.vocab == 32000
    assert held(work, "h100")[0] > 0


def test_the_same_script_in_other_words() -> None:
    plain = read("torchrun --nproc_per_node 8 pretrain_gpt.py --num-layers 4 --x -1 --y 1 2 --x=3")
    assert plain.options["nproc-per-node"] == ("8", "pretrain_gpt.py")
    assert plain.options["y"] == ("1", "2") and plain.options["x"] == ("3",)
    for text in (
        "srun -n 2 bash -c 'torchrun --nproc-per-node=8 a/pretrain_gpt.py --num-layers 4'",
        "run() { torchrun --nproc-per-node 8 train.py --num-layers $1; }\nN=4\nset -x\nrun",
        "msrun --worker_num 8 pretrain_gpt.py --num-layers 4 &",
        "nohup python -m torch.distributed.run x.py --num-layers 4 > log 2>&1",
        "python a.py --num-layers 9\npython -u pretrain_llama.py --num-layers 4",
        "torchrun x.py --num-layers 4\ntorchrun convert.py --b 1",
    ):
        assert "num-layers" in read(text, variables={"1": "4"}).options
    assert read("torchrun convert.py --b 1").options == {"b": ("1",)}


@pytest.mark.parametrize(
    "text", ["", "echo torchrun pretrain_gpt.py", "# torchrun a.py", "A='torchrun a.py'", "ls"]
)
def test_a_script_that_trains_nothing(text: str) -> None:
    with pytest.raises(Refused, match="^x.sh: starts no training -> it must call torchrun"):
        read(text, "x.sh")


def test_files(tmp_path: Path) -> None:
    file = tmp_path / "pretrain_A3_ptd.sh"
    file.write_text(DENSE)
    script = load(file)
    assert (script.name, script.preset) == (file.name, "ascend_a3")
    assert load(file, {"NNODES": "2"}).variables["NNODES"] == "4"  # the script sets it
    more = load(file, more=["--num-layers", "4", "--fp16"])
    assert more.options["num-layers"] == ("4",) and "fp16" in more.options
    with pytest.raises(Refused, match="No such file"):
        load(tmp_path / "none.sh")
    file.write_bytes(b"\xff\xfe\xff")
    with pytest.raises(Refused, match="name a launch script"):
        load(file)
    with pytest.raises(Refused, match="too long"):
        read("#" * 2_000_000)


@pytest.mark.parametrize(
    ("devices", "count"),
    [
        ("torchrun --nproc_per_node 8 --nnodes 2", 16),
        ("GPUS_PER_NODE=4; torchrun --nproc_per_node gpu --nnodes 3", 12),
        ("torchrun --nproc_per_node 8", 8),
        ("NNODES=2; torchrun --nproc_per_node 8", 8),
        ("NPUS_PER_NODE=8 NNODES=2; python", 16),
        ("WORLD_SIZE=24; python", 24),
        ("NPUS_PER_NODE=8; WORLD_SIZE=24; python", 24),
        ("msrun --worker_num 6 --local_worker_num 2", 6),
        ("deepspeed --num_gpus 4 --num_nodes 2", 8),
    ],
)
def test_devices(devices: str, count: int) -> None:
    text = f"{devices} pretrain_gpt.py --num-layers 2 --hidden-size 64 --num-attention-heads 4"
    work = workload(f"{text} --seq-length 8 --micro-batch-size 2 --vocab-size 100")
    assert work.grid.world == count and work.global_batch == 2 * count


SMALL = r"""
torchrun --nproc_per_node 16 pretrain_gpt.py --num-layers 8 --hidden-size 1024 --bf16 \
  --num-attention-heads 16 --seq-length 2048 --micro-batch-size 1 --global-batch-size 32 \
  --vocab-size 32000 --num-experts 8 """
MLA_FLAG = "--multi-latent-attention"


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        # the model
        ("--kv-channels 128", Attention(16, 16, 128, 128)),
        ("--group-query-attention --num-query-groups 4", Attention(16, 4, 64, 64)),
        ("--num-query-groups 4", Attention(16, 16, 64, 64)),  # without the flag
        ("--use-rotary-position-embeddings", Attention(16, 16, 64, 64, 64)),
        ("--transformer-impl local", Attention(16, 16, 64, 64, fused=False)),
        ("--transformer-impl local --use-flash-attn", Attention(16, 16, 64, 64)),
        ("--attention-backend unfused", Attention(16, 16, 64, 64, fused=False)),
        ("--sliding-window-size 128", Attention(16, 16, 64, 64, window=128)),
        (MLA_FLAG, Attention(16, 16, 192, 128, 64, None, 32)),
        (f"{MLA_FLAG} --qk-nope-head-dim 32 --qk-rope-head-dim 16 --v-head-dim 24 --q-lora-rank 9",
         Attention(16, 16, 48, 24, 16, 9, 32)),
        ("--ffn-hidden-size 640", Ffn(640, False, 8, 2)),
        ("--swiglu", Ffn(2688, True, 8, 2)),  # 8/3 of the width, in steps of 64
        ("--moe-ffn-hidden-size 128 --n-shared-experts 3 --moe-router-topk 6",
         Ffn(128, False, 8, 6, 384)),
    ],
)  # fmt: skip
def test_sizes(more: str, expected: object) -> None:
    layer = workload(SMALL + more).shape.layers[-1]
    assert expected in (layer.attention, layer.ffn)


@pytest.mark.parametrize(
    ("more", "fields"),
    [
        ("--tensor-model-parallel-size 4", {"grid": Grid(4, 1, 1, 4, 4, 1, 4)}),
        ("--tensor-model-parallel-size 4 --expert-model-parallel-size 2 --moe-tp-extend-ep",
         {"grid": Grid(4, 1, 1, 4, 1, 8, 2)}),
        ("--tensor-model-parallel-size 2 --expert-tensor-parallel-size 1 "
         "--expert-model-parallel-size 8 --context-parallel-size 2 --cp-comm-type a2a",
         {"grid": Grid(2, 2, 1, 4, 1, 8, 2), "context": "ulysses"}),
        ("--context-parallel-size 2 --context-parallel-algo kvallgather_cp_algo",
         {"context": "gather"}),
        ("--context-parallel-size 2 --context-parallel-algo megatron_cp_algo",
         {"context": "ring"}),
        ("--moe-token-dispatcher-type allgather", {"exchange": "allgather"}),
        ("--moe-token-dispatcher-type alltoall_seq", {"exchange": "alltoall"}),
        ("--moe-token-dispatcher-type flex", {"exchange": "chunked"}),
        ("--moe-token-dispatcher-type alltoall --moe-hierarchical-alltoallv",
         {"exchange": "hierarchical"}),
        ("--moe-expert-capacity-factor 1.1", {"imbalance": 1.1}),
        ("--moe-expert-capacity-factor 1.5", {"imbalance": IMBALANCE}),
        ("--moe-expert-capacity-factor 1.5 --moe-pad-expert-input-to-capacity",
         {"imbalance": 1.5}),
        ("--moe-router-force-load-balancing", {"imbalance": 1.0}),
        ("--num-experts 0", {"imbalance": 1.0, "exchange": "alltoall"}),
        ("--fp8-format hybrid", {"precision": "fp8"}),
        ("--fp4-format e2m1 --grad-reduce-in-bf16", {"precision": "fp4", "gradient": 2.0}),
        ("--hidden-dropout 0.0 --cross-entropy-loss-fusion", {"dropout": False,
                                                              "fused_loss": True}),
        ("--hidden-dropout 0.10", {"dropout": True}),
        ("--no-gradient-accumulation-fusion", {"fused_gradient": False}),
        ("--use-ascend-coc", {"fused_gradient": False, "probs_first": False}),
        ("--use-ascend-coc --gemm-gradient-accumulation-fusion", {"fused_gradient": True}),
        ("--use-distributed-optimizer", {"sharding": "optimizer"}),
        ("--use-torch-fsdp2", {"sharding": "full"}),
        ("--use-megatron-fsdp --data-parallel-sharding-strategy optim_grads_params",
         {"sharding": "full"}),
        ("--use-megatron-fsdp --data-parallel-sharding-strategy optim",
         {"sharding": "optimizer"}),
        ("--enable-cuda-graph", {"graphs": True}),
        ("--cuda-graph-impl none", {"graphs": False}),
        ("--sequence-parallel", {"sequence_parallel": False}),  # of one rank
        # what is kept
        ("--recompute-activations", {"memory": Memory(modules=frozenset({"core_attn"}))}),
        ("--recompute-granularity selective --recompute-modules layernorm moe_act mla_up_proj,moe",
         {"memory": Memory(modules=frozenset({"norm", "act", "mla_up_proj", "moe"}))}),
        ("--recompute-granularity full --recompute-method uniform --recompute-num-layers 1",
         {"memory": Memory(full=8)}),
        ("--recompute-granularity full --recompute-method block --recompute-num-layers 99",
         {"memory": Memory(full=8)}),
        ("--recompute-granularity full --recompute-method block --recompute-num-layers 3 "
         "--enable-recompute-layers-per-pp-rank --pipeline-model-parallel-size 2 "
         "--num-virtual-stages-per-pipeline-rank 2", {"memory": Memory(full=2)}),
        ("--moe-zero-memory level1", {"memory": Memory(modules=frozenset({"act", "norm"}))}),
        ("--recompute-mla-up-proj", {"memory": Memory(modules=frozenset({"mla_up_proj"}))}),
        # what is hidden
        ("--tp-comm-overlap", {"overlap": Overlap(pipeline=False, tensor=True)}),
        ("--overlap-moe-expert-parallel-comm", {"overlap": Overlap(pipeline=False, experts=0.8)}),
        ("--moe-alltoall-overlap-comm", {"overlap": Overlap(pipeline=False, experts=0.3)}),
        ("--pipeline-model-parallel-size 2 --num-virtual-stages-per-pipeline-rank 2 "
         "--no-overlap-p2p-communication", {"overlap": Overlap(pipeline=False)}),
    ],
)  # fmt: skip
def test_techniques(more: str, fields: Dict[str, object]) -> None:
    work = workload(SMALL + more)  # of an option that is there twice the last
    assert {name: getattr(work, name) for name in fields} == fields
    held(work, "b200")


@pytest.mark.parametrize(
    ("more", "lengths"),
    [
        ("", [4, 4]),
        ("--num-layers-per-virtual-pipeline-stage 2", [2, 2, 2, 2]),
        ("--num-virtual-stages-per-pipeline-rank 4", [1] * 8),
        ("--num-layer-list 3,5", [3, 5]),
        ("--decoder-first-pipeline-num-layers 3", [3, 5]),
        ("--decoder-last-pipeline-num-layers 2 --num-virtual-stages-per-pipeline-rank 2",
         [3, 1, 3, 1]),
        ("--account-for-embedding-in-pipeline-split --account-for-loss-in-pipeline-split",
         [4, 4]),
        ("--num-layers 7 --account-for-loss-in-pipeline-split", [4, 3]),
        ("--pipeline-model-parallel-layout 'E|tt*3|(t|)*2,t|tmL'", [0, 4, 1, 1, 1, 1]),
        ("--pipeline-model-parallel-layout Et*3'|'t*5L", [3, 5]),
        ("--noop-layers 0,7", [3, 3]),
        ("--noop-layers 0,7 --num-virtual-stages-per-pipeline-rank 4", [0, 1, 1, 1, 1, 1, 1, 0]),
    ],
)  # fmt: skip
def test_slots(more: str, lengths: List[int]) -> None:
    work = workload(f"{SMALL} --pipeline-model-parallel-size 2 {more}")
    assert [len(slot) for slot in work.slots] == lengths
    assert [place for slot in work.slots for place in slot] == list(range(sum(lengths)))
    assert len(work.shape.layers) == sum(lengths)
    held(work, "h100")


def test_places_of_experts() -> None:
    def kinds(more: str) -> str:
        layers = workload(SMALL + more).shape.layers
        return "".join("md"[not layer.ffn.experts] for layer in layers)

    assert kinds("") == "mmmmmmmm"
    assert kinds("--first-k-dense-replace -1 --moe-layer-freq -1") == "mmmmmmmm"
    assert kinds("--first-k-dense-replace 3") == "dddmmmmm"
    assert kinds("--moe-layer-freq 3") == "mddmddmd"
    assert kinds("--first-k-dense-replace 1 --moe-layer-freq 2") == "ddmdmdmd"
    assert kinds("--moe-layer-freq '[0]*3+[1]*5'") == "dddmmmmm"
    assert kinds("--moe-layer-freq '([0]+[1]*3)*2'") == "dmmmdmmm"
    assert kinds("--first-k-dense-replace 3 --noop-layers 1,7") == "ddmmmm"


@pytest.mark.parametrize(
    ("more", "lines"),
    [
        # missing, all at once
        ("-h", ["no --nproc_per_node (or WORLD_SIZE), --hidden-size, --num-layers, "
                "--num-attention-heads, --padded-vocab-size (tokenizers are not read), "
                "--seq-length, --micro-batch-size -> write it into the launch command"]),
        # no numbers, all at once
        ("--num-layers 1.5 --seq-length --micro-batch-size 0 --hidden-size $X --moe-layer-freq x "
         "--hidden-dropout nan --noop-layers a,b --mtp-num-layers -1",
         ["--num-layers 1.5: must be a whole number from 1 to 10000", "--seq-length has no value",
          "--micro-batch-size 0: must be a whole number from 1;", "--hidden-size has no value",
          "--moe-layer-freq x: must be a number, or a list of --num-layers 0 and 1",
          "--hidden-dropout nan: must be a number", "--noop-layers a,b: must be numbers",
          "--mtp-num-layers -1: must be a whole number from 0"]),
        ("--num-layers 99999999", ["--num-layers 99999999: must be a whole number from 1 to"]),
        ("--moe-layer-freq '[1]*9'", ["--moe-layer-freq [1]*9: must be a number, or a list"]),
        ("--moe-layer-freq '[1]*99999999999'", ["must be a number, or a list"]),
        ("--moe-layer-freq 0", ["must be a number, or a list"]),
        ("--moe-layer-freq '__import__(\"os\").abort()'", ["must be a number, or a list"]),
        # the devices
        ("--tensor-model-parallel-size 3", ["the layout does not fit its devices: 16 ranks are not "
                                            "a multiple of tensor 3 x context 1 x pipeline 1"]),
        ("--expert-model-parallel-size 8 --tensor-model-parallel-size 4",
         ["not a multiple of expert tensor 4 x expert 8 x pipeline 1"]),
        # what does not fit together, all at once
        ("--num-experts 6 --expert-model-parallel-size 4 --fp16 --global-batch-size 24 "
         "--moe-router-topk 7 --context-parallel-size 4 --seq-length 2044",
         ["--num-experts (6) is not a multiple of expert-parallel ranks (4)",
          "--bf16 and --fp16: only one of them can be set",
          "--moe-router-topk 7 of --num-experts 6",
          "--seq-length (2044) is not a multiple of 2 x --context-parallel-size (8)",
          "change the options"]),
        ("--global-batch-size 24",
         ["--global-batch-size (24) is not a multiple of --micro-batch-size x data ranks (16)"]),
        ("--num-experts 0 --expert-model-parallel-size 2",
         ["--expert-model-parallel-size 2 without --num-experts"]),
        ("--num-attention-heads 12",
         ["--hidden-size (1024) is not a multiple of --num-attention-heads (12)"]),
        ("--num-attention-heads 12 --kv-channels 64 --tensor-model-parallel-size 8",
         ["--num-attention-heads (12) is not a multiple of --tensor-model-parallel-size (8)"]),
        ("--group-query-attention --num-query-groups 5",
         ["--num-attention-heads (16) is not a multiple of --num-query-groups (5)"]),
        ("--num-attention-heads 24 --kv-channels 64 --group-query-attention --num-query-groups 3 "
         "--tensor-model-parallel-size 8 --expert-tensor-parallel-size 1",
         ["--num-query-groups (3) is neither a multiple nor a divisor of"]),
        ("--padded-vocab-size 32001 --tensor-model-parallel-size 2",
         ["--padded-vocab-size (32001) is not a multiple of --tensor-model-parallel-size (2)"]),
        ("--moe-ffn-hidden-size 129 --tensor-model-parallel-size 2",
         ["--moe-ffn-hidden-size (129) is not a multiple of --expert-tensor-parallel-size (2)"]),
        ("--ffn-hidden-size 129 --num-experts 0 --tensor-model-parallel-size 2",
         ["--ffn-hidden-size (129) is not a multiple of --tensor-model-parallel-size (2)"]),
        ("--seq-length 2047 --sequence-parallel --tensor-model-parallel-size 2",
         ["--seq-length (2047) is not a multiple of --tensor-model-parallel-size (2)"]),
        ("--use-torch-fsdp2 --pipeline-model-parallel-size 2",
         ["--use-torch-fsdp2 has no pipeline"]),
        # the pipeline
        ("--num-layers 9 --pipeline-model-parallel-size 2",
         ["--num-layers (9) is not a multiple of --pipeline-model-parallel-size (2)"]),
        ("--num-layers 2 --pipeline-model-parallel-size 4", ["2 layers on 4 stages"]),
        ("--num-virtual-stages-per-pipeline-rank 2", ["virtual stages need --pipeline-model-"]),
        ("--pipeline-model-parallel-size 2 --num-layers-per-virtual-pipeline-stage 3",
         ["layers of a stage (4) is not a multiple of --num-layers-per-virtual-pipeline-stage"]),
        ("--pipeline-model-parallel-size 2 --num-virtual-stages-per-pipeline-rank 3",
         ["layers of a stage (4) is not a multiple of its virtual stages (3)"]),
        ("--pipeline-model-parallel-size 2 --num-layers-per-virtual-pipeline-stage 2 "
         "--num-virtual-stages-per-pipeline-rank 2", ["only one of them can be set"]),
        ("--pipeline-model-parallel-size 4 --num-virtual-stages-per-pipeline-rank 2 "
         "--global-batch-size 24",
         ["micro-batches of a rank (6) is not a multiple of stages, as virtual ones need (4)"]),
        ("--pipeline-model-parallel-size 2 --num-layer-list 3,4",
         ["--num-layer-list 3,4: must be 2 numbers that make --num-layers 8"]),
        ("--pipeline-model-parallel-size 2 --pipeline-model-parallel-layout 'Et*3|tttL'",
         ["its 6 layers in 2 parts must be --num-layers 8 in a multiple of 2"]),
        ("--pipeline-model-parallel-size 2 --decoder-first-pipeline-num-layers 8",
         ["0 layers on 1 stages"]),
        ("--pipeline-model-parallel-size 4 --decoder-last-pipeline-num-layers 1",
         ["layers of the stages in the middle (7) is not a multiple of them (3)"]),
        ("--noop-layers 8", ["--noop-layers 8: not of the layers"]),
        ("--noop-layers 0,1,2,3,4,5,6,7", ["--noop-layers 0,1,2,3,4,5,6,7: not of the layers"]),
        ("--recompute-granularity full --recompute-method block",
         ["--recompute-granularity full needs --recompute-method uniform, or block with"]),
    ],
)  # fmt: skip
def test_refused(more: str, lines: List[str]) -> None:
    text = "python pretrain_gpt.py " if more == "-h" else SMALL
    script = read(text + more, "run.sh")
    with pytest.raises(Refused) as refused:
        workload_of_script(script)
    told = str(refused.value)
    assert told.startswith("run.sh: ") and "\n" not in told
    for line in lines:
        assert line in told


def test_options_that_are_not_simulated_are_named() -> None:
    more = (
        "--lr 1 --save x --moe-layer-recompute --hybrid-layer-pattern 'M*-' --fsdp-double-buffer "
        "--schedules-method dualpipev --optimizer adam --loss-compute-mode chunk --lora-r 8 "
        "--recompute-modules mhc core_attn --ulysses-degree-in-cp 1"
    )
    script = read(SMALL + more)
    assert script.unused == (
        "--moe-layer-recompute", "--hybrid-layer-pattern", "--fsdp-double-buffer",
        "--schedules-method", "--loss-compute-mode", "--lora-r", "--recompute-modules mhc",
    )  # fmt: skip
    assert workload_of_script(script)
    assert "--optimizer" in read("torchrun a.py --optimizer muon").unused


@pytest.mark.parametrize("cut", ["\\\n # a comment", "\\ "])
def test_options_that_bash_cuts_off_are_named(cut: str) -> None:
    text = SMALL.replace("--bf16 \\", f"--bf16 {cut}")
    script = read(text, "run.sh")
    assert "--seq-length" in script.lost and "seq-length" not in script.options
    with pytest.raises(Refused) as refused:
        workload_of_script(script)
    assert "no --num-attention-heads, --padded-vocab-size" in str(refused.value)
    assert "cuts --num-attention-heads, --seq-length, --micro-batch-size, ... off" in str(
        refused.value
    )


@pytest.mark.parametrize(
    ("name", "text", "preset"),
    [
        ("pretrain_x_A3_ptd.sh", "NPUS_PER_NODE=8", "ascend_a3"),
        ("a.sh", "export HCCL_BUFFSIZE=400", "ascend_a2"),
        ("a.sh", "NPUS_PER_NODE=16", "ascend_a3"),
        ("a.sh", "# for Ascend\nNPUS_PER_NODE=16", "ascend_a3"),
        ("train_h100_fp8.sh", "# not for A100", "h100"),
        ("a.sh", "# NVIDIA H800", "h100"),
        ("a.sh", "GPUS_PER_NODE=8; NAME=llama3_70b_a3b", ""),
    ],
)
def test_the_hardware_that_a_script_tells(name: str, text: str, preset: str) -> None:
    script = read(f"{text}\n{SMALL}", name)
    assert script.preset == preset
    held(workload_of_script(script), preset or "h100")


VALUES = st.sampled_from(["0", "1", "2", "3", "8", "16", "-1", "x", "", "1e9", "999999999", "4096"])
NAMES = (
    "num-layers hidden-size num-attention-heads num-query-groups kv-channels ffn-hidden-size "
    "seq-length micro-batch-size global-batch-size tensor-model-parallel-size "
    "pipeline-model-parallel-size num-layers-per-virtual-pipeline-stage context-parallel-size "
    "num-virtual-stages-per-pipeline-rank expert-model-parallel-size expert-tensor-parallel-size "
    "num-experts moe-router-topk moe-ffn-hidden-size moe-layer-freq first-k-dense-replace "
    "noop-layers mtp-num-layers vocab-size padded-vocab-size num-layer-list nproc-per-node nnodes "
    "recompute-num-layers recompute-granularity moe-expert-capacity-factor q-lora-rank "
    "multi-latent-attention group-query-attention moe-tp-extend-ep swiglu "
    "decoder-first-pipeline-num-layers pipeline-model-parallel-layout hidden-dropout"
).split()


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.dictionaries(st.sampled_from(NAMES), VALUES, max_size=8))
def test_any_values_are_a_workload_or_refused(values: Dict[str, str]) -> None:
    script = read(SMALL)
    changed = {name: tuple(value.split()) for name, value in values.items()}
    try:
        work = workload_of_script(replace(script, options={**script.options, **changed}))
    except Refused:
        return
    assert sum(map(len, work.slots)) == len(work.shape.layers) > 0
    assert work.grid.world >= work.grid.pipeline and work.micro_batches >= 1


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.text() | st.text("$(){}[]`'\"\\# \n=;|&-torchun.py0123456789A"))
def test_any_text_is_a_script_or_refused(text: str) -> None:
    for whole in (text, text + SMALL, SMALL + text):
        try:
            assert isinstance(read(whole), Script)
        except Refused:
            pass
