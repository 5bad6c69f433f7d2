"""Contenders from other libraries. Their processes need those libraries, and neither JAX nor diffusers_fn."""
