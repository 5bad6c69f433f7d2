"""The U-Nets of improved- and guided-diffusion (UNetModel): names of their tensors and of their config.

Nichol and Dhariwal, "Improved Denoising Diffusion Probabilistic Models" (2021), https://arxiv.org/abs/2102.09672;
Dhariwal and Nichol, "Diffusion Models Beat GANs on Image Synthesis" (2021), https://arxiv.org/abs/2105.05233. The
config is the set of keyword arguments of UNetModel.
"""
