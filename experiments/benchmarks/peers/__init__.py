"""Contenders that other libraries make. Their processes need those libraries, and neither JAX nor this one."""
