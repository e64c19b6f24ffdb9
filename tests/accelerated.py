"""A tensor that behaves like one on MPS where it matters: such a device has no float64."""

import torch


class Accelerated(torch.Tensor):
    """Refuses float64 until `cpu()` brings it back; what is computed from it stays one."""

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        if function == torch.Tensor.device.__get__:
            return torch.device("mps")
        out = super().__torch_function__(function, types, args, kwargs or {})
        if function is torch.Tensor.cpu:
            return out.as_subclass(torch.Tensor)
        if isinstance(out, torch.Tensor) and out.dtype == torch.float64:
            raise TypeError("Cannot convert a MPS Tensor to float64 dtype")
        return out
