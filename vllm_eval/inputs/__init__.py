"""What is evaluated: cases, adapters, the base model, and the plan made from them."""
