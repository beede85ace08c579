"""vLLM in this process: base and adapters in one continuous batch."""
