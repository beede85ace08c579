"""Which keys do not decide what is measured, so that they may differ within one run."""

from __future__ import annotations

NOT_IDENTITY = frozenset(
    (
        *("profile", "tag", "output_dir", "gate", "report", "repair", "engine_env"),
        *("until_settled", "max_engine_restarts", "baseline"),
        "batch_size",  # decides what fits: each row is drawn with its own request's seed
        # where and how servers are asked; their models and release are noted by `run`
        *("base_url", "served_models", "load_adapters", "max_concurrency"),
        *("request_timeout_s", "server_patience_s"),
        *("ray_address", "replicas"),
        # these are identified by what lies there, not by their path
        *("adapters", "adapter_dirs", "base_model", "dataset_path", "prompt_template", "script"),
    )
)
"""Configuration keys that may differ between two sessions of one run."""
CAPACITY_ARGS = frozenset(
    (
        *("max_model_len", "max_num_seqs", "max_num_batched_tokens", "enforce_eager"),
        *("gpu_memory_utilization", "kv_cache_memory_bytes", "cpu_offload_gb", "swap_space"),
        *("tensor_parallel_size", "pipeline_parallel_size", "distributed_executor_backend"),
        *("max_loras", "max_cpu_loras", "enable_prefix_caching", "enable_chunked_prefill"),
        "disable_custom_all_reduce",
    )
)
"""Engine options that decide what fits, not what is answered: our own advice changes them."""
