"""A GPU that is none: every tensor stays in the computer's memory, but some carry a tag, and where a tagged and an untagged one meet,
it fails as CUDA would. So a forgotten `device=` or `.to(device)` is found on a machine without a GPU. What cannot be found here is
what only the hardware does: precision, speed, kernels that are missing."""
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten, tree_map

GPU = torch.device("cuda", 0)
FREE = {"__get__", "__set__", "__repr__", "__format__", "__hash__", "dim", "size", "numel", "tolist", "item", "__bool__", "__int__", "__float__", "__len__",
        "copy_", "detach_", "is_floating_point", "is_complex", "stride", "element_size", "requires_grad_", "register_hook", "backward", "__deepcopy__",
        "is_contiguous", "__index__", "storage_offset", "untyped_storage", "_has_compatible_shallow_copy_type", "is_sparse"}   # they ask, or may cross over
TO_HOST = {"numpy", "__array__"}


def on_gpu(value) -> bool: return isinstance(value, torch.Tensor) and getattr(value, "_pretend_gpu", False)


def put(value, gpu: bool):
    "Tag a tensor, or take the tag off."
    if isinstance(value, torch.Tensor): value._pretend_gpu = gpu
    return value


def is_gpu(value) -> bool:
    "A device, or the name of one, that is a GPU's."
    return isinstance(value, (torch.device, str)) and str(value).startswith("cuda")


class PretendGPU(TorchFunctionMode):
    "Inside the block `device=\"cuda\"` works, on tags."

    def __enter__(self):
        self.copy = torch.nn.Parameter.__deepcopy__           # it makes a new object past all functions: the tag goes along here
        torch.nn.Parameter.__deepcopy__ = lambda one, memo: put(self.copy(one, memo), on_gpu(one))
        return super().__enter__()

    def __exit__(self, *error):
        torch.nn.Parameter.__deepcopy__ = self.copy
        return super().__exit__(*error)

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        name = getattr(func, "__name__", str(func))
        if func == torch.Tensor.device.__get__: return GPU if on_gpu(args[0]) else func(*args)
        if func == torch.Tensor.is_cuda.__get__: return on_gpu(args[0])
        if func == torch.Tensor.grad.__get__: return put(func(*args), on_gpu(args[0]))
        if func == torch.Tensor.data.__set__: put(args[0], on_gpu(args[1]))
        if name in ("to", "cpu", "cuda"): return self.moved(name, args, kwargs)
        tensors = [v for v in tree_flatten((args, kwargs))[0] if isinstance(v, torch.Tensor)]
        if name in TO_HOST and any(map(on_gpu, tensors)): raise TypeError(f"{name}: the tensor is on the GPU, use .cpu() first")
        asked = is_gpu(kwargs.get("device"))
        if asked: kwargs["device"] = torch.device("cpu")
        if name not in FREE: self.check(name, args, tensors)
        result = func(*args, **kwargs)
        if "device" in kwargs and not tensors: return put(result, asked)
        gpu = asked or ("device" not in kwargs and any(map(on_gpu, tensors)))
        return tree_map(lambda v: put(v, gpu), result) if name not in ("__set__", "backward") and gpu else result

    def check(self, name: str, args, tensors) -> None:
        "Raises: RuntimeError where tensors of two devices meet; single numbers may, and host indices into a tensor on the GPU."
        if name == "__getitem__" and on_gpu(args[0]): return
        if name == "__setitem__" and on_gpu(args[0]): tensors = [t for t in (args[0], args[2]) if isinstance(t, torch.Tensor)]
        if any(map(on_gpu, tensors)) and any(not on_gpu(t) and t.dim() for t in tensors):
            raise RuntimeError(f"{name}: expected all tensors to be on the same device: {[(tuple(t.shape), 'cuda' if on_gpu(t) else 'cpu') for t in tensors]}")

    @staticmethod
    def moved(name: str, args, kwargs):
        "`to`, `cpu`, `cuda`: the device goes into the tag, the type is changed."
        source, rest = args[0], list(args[1:])
        asked = [v for v in (*rest, *kwargs.values()) if isinstance(v, (torch.device, str))]
        other = [v for v in rest if isinstance(v, torch.Tensor)]
        gpu = {"cpu": False, "cuda": True}.get(name, is_gpu(asked[0]) if asked else on_gpu(other[0]) if other else on_gpu(source))
        kinds = [v for v in (*rest, *kwargs.values()) if isinstance(v, torch.dtype)] or [v.dtype for v in other]
        result = source.to(kinds[0]) if kinds else source
        return put(result.clone() if result is source and gpu != on_gpu(source) else result, gpu)


def move(module: torch.nn.Module) -> torch.nn.Module:
    "All parameters and buffers of a module."
    for tensor in (*module.parameters(), *module.buffers()): put(tensor, True)
    if hasattr(module, "_device"): module._device = GPU
    return module
