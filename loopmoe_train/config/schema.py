"""Typed schema of a run. Plain dataclasses, importable without torch.

Every group below is a folder of presets in ``configs/`` (``model=loopmoe_tiny``) and a
section of ``run.yaml``. Cross-field checks live in :mod:`loopmoe_train.config.rules`.
Sizes are counts of elements unless a unit stands in the comment.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Dict, List, Optional


@dataclass
class AttentionConfig:
    """Self-attention of every layer: ``mla`` (DeepSeek-V2, multi-head latent) or ``gqa``."""

    kind: str = "mla"
    num_heads: int = 4
    rotary_base: float = 10000.0
    # mla: ranks of the low-rank projections and dims per head
    q_lora_rank: Optional[int] = 64  # null: queries are projected directly
    kv_lora_rank: int = 64
    qk_head_dim: int = 32  # part of a query/key head without position
    qk_rope_head_dim: int = 16  # part with rotary position
    v_head_dim: int = 32
    # gqa
    num_query_groups: int = 4
    head_dim: int = 64
    qk_norm: bool = False  # RMSNorm over every query and key head, before rotation (Qwen3)


@dataclass
class MoEConfig:
    """Fine-grained mixture of experts (DeepSeekMoE)."""

    num_experts: int = 16
    top_k: int = 2
    expert_hidden_size: int = 128
    num_shared_experts: int = 1  # one SwiGLU of num_shared_experts * expert_hidden_size
    score_function: str = "sigmoid"  # sigmoid | softmax
    # weights of a token's chosen experts sum to one (top_k > 1); false: they stay parts of the
    # softmax over all experts
    norm_topk_prob: bool = True
    topk_scaling_factor: Optional[float] = None  # factor on those weights
    # restrict the choice to groups of num_experts / num_groups experts: `limited`: the best
    # topk_groups of them (DeepSeek-V3); `balanced`: top_k / num_groups in each (Pangu Pro MoE)
    group_routing: str = "none"  # none | limited | balanced
    num_groups: Optional[int] = None
    topk_groups: Optional[int] = None
    # balancing: DeepSeek-V3's bias on the selection, and auxiliary losses (moe/balance.py)
    expert_bias_update_rate: float = 1e-3  # 0: no expert bias
    # over whose tokens: none | micro_batch | sequence | expert_parallel | global_batch
    aux_loss: str = "micro_batch"
    aux_loss_coeff: float = 1e-3
    device_loss_coeff: float = 0.0  # one more loss, that balances the expert-parallel ranks
    balance_over: str = "layer"  # layer: all iterations of a looped layer pooled | visit: each
    z_loss_coeff: float = 0.0
    # an expert takes at most capacity_factor x its even share of a micro-batch; null: dropless
    capacity_factor: Optional[float] = None
    drop_policy: str = "probs"  # which tokens stay: probs (the most probable) | position
    pad_to_capacity: bool = False
    # tokens among expert-parallel ranks: alltoall | allgather | once between nodes: hierarchical
    # (all-gather there, all-to-all inside) | deduplicated (only to nodes with an expert of it) |
    # auto: what the simulator finds fastest, before the run starts
    dispatcher: str = "alltoall"
    overlap_shared_experts: bool = False  # shared experts run beside the exchange


@dataclass
class LoopConfig:
    """The loop body (arXiv 2606.04438)."""

    iterations: int = 4  # K; 1: not looped
    conditioning: str = "iter_adaln"  # iter_adaln | none (a loop that cannot tell iterations apart)
    gate: str = "vector"  # alpha per token and channel, or `scalar`: per token
    bottleneck: Optional[int] = None  # width of the condition c; null: hidden_size
    iteration_code_size: int = 256  # width of the sinusoid PE(k)
    share_iteration_mlp: bool = False  # one MLP_iter for all body layers instead of one each
    # each step draws its number of iterations from min_iterations..iterations; null: always all
    min_iterations: Optional[int] = None
    backprop_iterations: Optional[int] = None  # gradients go through the last n only; null: all
    # the state that enters the loop is added again before iterations 2..K, through a matrix that
    # starts at zero (Huginn, arXiv 2502.05171)
    state_injection: bool = False


@dataclass
class ModelConfig:
    """Layout: prefix layers, then the loop body ``loop.iterations`` times, then suffix layers."""

    name: str = "loopmoe_tiny"
    hidden_size: int = 128
    prefix_layers: int = 1
    body_layers: int = 2
    suffix_layers: int = 1
    dense_layers: int = 1  # the first n layers use a dense FFN instead of experts
    dense_ffn_hidden_size: int = 512
    mtp_layers: int = 0  # multi-token-prediction depths behind the last layer (DeepSeek-V3)
    mtp_loss_coeff: float = 0.1  # weight of the mean of their losses
    vocab_size: Optional[int] = None  # null: that of the tokenizer
    tie_embeddings: bool = False
    sandwich_norm: bool = True  # a second RMSNorm on every sublayer output
    # [c_attention, c_ffn]: the output norms' gains start at c / sqrt(visits) (Pangu Ultra's
    # depth-scaled sandwich norm); null: at 1
    depth_scaled_gains: Optional[List[float]] = None
    norm_epsilon: float = 1e-6
    # scaled: normal(0, init_std), output matrices / sqrt(2 visits); tiny: all matrices
    # sqrt(1 / (2 hidden_size visits)) (Pangu Ultra's TinyInit)
    init: str = "scaled"
    init_std: float = 0.02
    embedding_init_std: Optional[float] = None  # null: as other matrices
    hidden_dropout: float = 0.0
    attention_dropout: float = 0.0
    loop: LoopConfig = field(default_factory=LoopConfig)
    attention: AttentionConfig = field(default_factory=AttentionConfig)
    moe: MoEConfig = field(default_factory=MoEConfig)


@dataclass
class ParallelConfig:
    """Split of model and data over the ranks: two grids over the same ranks (parallel folding).

    devices = tensor x context x pipeline x data, for experts
            = expert_tensor x expert x pipeline x expert data; both data sizes follow.
    """

    tensor_parallel_size: int = 1  # matrices; with sequence parallelism between them
    context_parallel_size: int = 1  # every sequence, two chunks a rank (zig-zag)
    context_parallel: str = "gather"  # gather: latents or keys and values | ulysses: heads
    pipeline_parallel_size: int = 1  # stages
    # chunks on a stage for one pass through the layers; of a looped model: through its body
    virtual_pipeline_size: int = 1
    # visits (layer, iteration) of every slot, in execution order: as many slots as stages x
    # chunks; null: placed by cost
    pipeline_layout: Optional[List[int]] = None
    expert_parallel_size: int = 1
    expert_tensor_parallel_size: int = 1  # expert matrices
    distributed_optimizer: bool = True  # optimizer states are spread over data-parallel ranks
    # engine=deepspeed: what is spread over data-parallel ranks: 1 (optimizer states),
    # 2 (gradients too) or 3 (weights too)
    zero_stage: int = 1
    overlap_grad_reduce: bool = False
    overlap_param_gather: bool = False
    overlap_p2p_comm: bool = True  # a pipeline of several chunks sends while it computes


@dataclass
class LinkConfig:
    """One tier of the network; tiers are listed from the innermost outwards."""

    name: str = "node"
    devices: int = 8  # that it joins; 0: all of the cluster
    gbytes_per_s: float = 25.0  # of one device, each way
    latency_us: float = 5.0  # of one step of a collective
    mesh: bool = False  # every pair has its own wire: g devices reach (g - 1) / (devices - 1) of it


@dataclass
class EfficiencyConfig:
    """What share of the data sheet is reached; the simulator's figures. Where `table` has an
    operator's measured rate (`loopmoe bench ops` writes one), that counts instead."""

    matmul: float = 0.75  # of a large bf16 product
    matmul_fp8: float = 0.6
    matmul_fp4: float = 0.45
    grouped: float = 0.85  # of a plain product of the same size
    attention: float = 0.55  # fused attention, of the bf16 peak
    attention_backward: float = 0.45
    memory: float = 0.8
    link: float = 0.75
    grouped_loop: bool = True  # a grouped product is launched expert by expert
    launch_us: float = 4.0  # between two operators on the device
    host_us: float = 20.0  # that the host needs for an operator
    table: Optional[str] = None
    # measured over predicted step time of one run with the software below: every predicted time
    # is multiplied by it. `loopmoe train parallel=auto` prints it when a run ends.
    scale: float = 1.0
    software: Optional[str] = None  # what all these figures are of, e.g. "torch 2.13.0"


@dataclass
class ClusterConfig:
    """The machine. Its memory and links are for the simulator; training itself asks the device."""

    name: str = "cpu"
    device: str = "cpu"  # cpu | cuda | npu
    devices: int = 2  # processes in all
    # dense matmul peak per device in TFLOP/s for `mfu`; null: measured when training starts
    peak_tflops_bf16: Optional[float] = None
    peak_tflops_fp32: Optional[float] = None
    peak_tflops_fp8: Optional[float] = None
    peak_tflops_fp4: Optional[float] = None
    # fp32 rate of what is no product (norms, activations, softmax); null: memory alone bounds it
    peak_tflops_vector: Optional[float] = None
    cores: int = 1  # that share a matrix product (multiprocessors, cube cores)
    devices_per_node: int = 8
    # the same numbers at every repetition on the same layout; slower. Operators and collectives
    # that cannot do it are refused by torch
    deterministic: bool = False
    # implementation of the ops of loopmoe_kernels: eager | triton; null: what fits the device
    kernels: Optional[str] = None
    memory_gib: Optional[float] = None  # of one device
    reserved_gib: float = 1.0  # of it, for the runtime and its libraries
    communicator_mib: float = 60.0  # of it, for the buffers of one communicator
    fragmentation: float = 0.06  # what the allocator holds beyond what it has handed out, a share
    memory_gbytes_per_s: Optional[float] = None
    host_gbytes_per_s: float = 20.0  # to the host's memory and back, of one device
    links: List[LinkConfig] = field(default_factory=list)
    efficiency: EfficiencyConfig = field(default_factory=EfficiencyConfig)


@dataclass
class MixtureMember:
    """One prepared dataset of ``data.mixture``."""

    path: str = ""  # its folder
    weight: float = 1.0  # share of the samples, relative to the other members
    name: Optional[str] = None  # in val/<name>/...; null: the folder's name


@dataclass
class DataConfig:
    """Corpus and packing. Relative paths are taken from the folder of the command; run.yaml
    records those of datasets as absolute ones."""

    source: List[str] = field(default_factory=lambda: ["python-stdlib"])
    path: str = "datasets/python-stdlib"  # folder of tokenizer, train.bin/.idx, valid.bin/.idx
    # several prepared datasets to train on, instead of source and path; they share one tokenizer
    mixture: List[MixtureMember] = field(default_factory=list)
    # folders of further datasets whose validation split is evaluated apart
    validation: List[str] = field(default_factory=list)
    valid_percent: float = 5.0  # share of documents held out, by a hash of their path
    eod_mask_loss: bool = False  # no loss for predicting the first token of the next document
    reset_attention_mask: bool = False  # attention and positions restart at document ends
    workers: int = 2  # processes that tokenise


@dataclass
class TokenizerConfig:
    """SentencePiece (byte fallback, so any text survives a round trip)."""

    kind: str = "bpe"  # bpe | unigram
    vocab_size: int = 4096
    train_bytes: int = 4_000_000  # text read for training the tokenizer
    path: Optional[str] = None  # a tokenizer.model to take as it is; null: train one


@dataclass
class OptimConfig:
    """The optimizer and its schedule."""

    kind: str = "adamw"  # adamw | muon: Muon for matrices inside layers, AdamW for the rest
    lr: float = 4e-3
    min_lr: float = 4e-4
    schedule: str = "cosine"  # cosine | wsd | constant
    warmup_steps: int = 20
    decay_steps: Optional[int] = None  # wsd: length of the final decay; null: a fifth of the run
    weight_decay: float = 0.1
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-8
    clip_grad: float = 1.0  # 0: no clipping
    # where adamw's fp32 weights and moments live and are updated: none (on the device) | cpu
    offload: str = "none"
    offload_update: str = (
        "torch"  # offload=cpu: torch's fused AdamW | deepspeed: its vectorised one
    )
    # muon
    momentum: float = 0.95
    nesterov: bool = True
    newton_schulz_steps: int = 5
    update_rms: float = 0.2  # RMS of an update at lr=1; AdamW's is about that


@dataclass
class MemoryConfig:
    """What is recomputed in backward instead of being kept."""

    recompute: str = "none"  # none | selective | full
    recompute_modules: List[str] = field(default_factory=list)  # for selective


@dataclass
class CheckpointConfig:
    """Saving and resuming."""

    interval: int = 0  # steps between checkpoints; 0: only at the end
    keep: int = 2
    background: bool = True  # the step goes on while files are written; false: it waits
    resume: str = "auto"  # auto: newest valid one of this run folder | none | a step-<n> folder


@dataclass
class ObserveConfig:
    """What the user sees while the run goes on and after it."""

    log_interval: int = 1
    tensorboard: bool = False  # event files in the run folder's tensorboard/
    wandb: str = "off"  # off | offline | online
    wandb_project: str = "loopmoe"
    sample_prompt: str = "def "
    sample_tokens: int = 120


@dataclass
class ProfileConfig:
    """Record what host and device do during a few steps: the run folder's profile/."""

    steps: Optional[str] = None  # 10-12, or one step; null: nothing is recorded
    ranks: List[int] = field(default_factory=lambda: [0])  # a trace of each


@dataclass
class LauncherConfig:
    """How the ranks are started and watched.

    Of several nodes each has ``cluster.devices_per_node`` ranks, and all see one run folder.
    """

    kind: str = "local"  # local | torchrun | mpirun | slurm | volcano
    # torchrun, slurm, volcano: machines. torchrun: the same command is typed on each of them.
    nodes: int = 1
    # HOST:PORT where the nodes meet: torchrun: of one of them, mpirun: of the first host (null:
    # port 29500 there). The port has no authentication: a trusted network only.
    endpoint: Optional[str] = None
    hosts: List[str] = field(default_factory=list)  # mpirun: machines, the first has rank 0
    hostfile: Optional[str] = None  # mpirun: those of a file in Open MPI's format instead
    queue: Optional[str] = None  # slurm: partition, volcano: queue; null: the cluster's default
    minutes: Optional[int] = None  # slurm: time limit, two minutes before which the run is saved
    image: Optional[str] = None  # volcano: container image
    volume: Optional[str] = (
        None  # volcano: claim of a volume that all nodes see, for the run folder
    )
    # more of them for torchrun, mpirun, sbatch or kubectl
    arguments: List[str] = field(default_factory=list)
    dry_run: bool = False  # print the commands, the script or the manifest, and start nothing
    timeout_minutes: float = 5.0  # of a collective; a rank that is silent longer is lost
    threads_per_rank: int = 1
    # Restarts in a row that get no further than an attempt before; 0: a lost rank ends the run.
    max_restarts: int = 3
    heartbeat_seconds: float = 3.0  # a rank that is stopped or stuck outside Python longer is lost
    # A rank that stays in one phase longer hangs (from its second step on). null: only steps are
    # timed, the limit is 10 x the longest step so far, at least 60.
    hang_seconds: Optional[float] = None


@dataclass
class RunConfig:
    """One training run; ``run.yaml`` is this, with nothing left to choose."""

    name: str = "quickstart"
    runs_dir: str = "runs"
    seed: int = 1234
    steps: int = 360
    sequence_length: int = 256
    micro_batch_size: int = 4
    global_batch_size: int = 8  # sequences per optimizer step over all ranks
    batch_ramp_from: Optional[int] = None  # smaller batch to begin with; null: no ramp
    batch_ramp_samples: int = 0  # samples over which it grows to global_batch_size
    precision: str = "fp32"  # fp32 | bf16
    # who reduces gradients and updates: megatron (core) | deepspeed (ZeRO; data and expert
    # parallelism only; extra `deepspeed`)
    engine: str = "megatron"
    eval_interval: int = 90  # 0: only at the end
    eval_batches: int = 60  # global batches per validation set; 0: the whole of it
    model: ModelConfig = field(default_factory=ModelConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    data: DataConfig = field(default_factory=DataConfig)
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    memory: MemoryConfig = field(default_factory=MemoryConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    observe: ObserveConfig = field(default_factory=ObserveConfig)
    profile: ProfileConfig = field(default_factory=ProfileConfig)
    launcher: LauncherConfig = field(default_factory=LauncherConfig)


@dataclass
class StudyConfig:
    """A controlled comparison: runs that differ in their arm and seed alone (`loopmoe study`).

    Settings are overrides as on the command line of ``loopmoe train``.
    """

    name: str = "study"
    runs_dir: str = "runs"  # the study is the folder <runs_dir>/<name>, a run folder in it each
    settings: List[str] = field(default_factory=list)  # of every run
    arms: Dict[str, List[str]] = field(default_factory=dict)  # name of an arm: what makes it
    reference: str = ""  # the arm that the others are compared with
    # runs of one seed are a pair: they see the same documents in the same order
    seeds: List[int] = field(default_factory=list)
    side_by_side: int = 1  # runs at a time
    # after so long what runs is saved and stopped, and the same command continues; null: never
    minutes: Optional[float] = None
