"""The parts of `experiments.benchmark`. What torch's processes import needs neither JAX nor this project's packages."""
