"""The parts of `experiments.benchmark`. Modules that torch's processes import need neither JAX nor diffusers_fn."""
