"""Environment of test processes and of the processes that they start."""

# Most of the suite's time goes into compiling: the least of it. Programs run slower, but do not run long.
CHEAP_XLA = (
    "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true --xla_cpu_use_fusion_emitters=false"
)
# The opposite, as `compiler_options` of a program that runs for hundreds of steps.
ALL_PASSES = {
    "xla_backend_optimization_level": 3,
    "xla_llvm_disable_expensive_passes": False,
    "xla_cpu_use_fusion_emitters": True,
}


def xla_flags(devices: int = 1) -> str:
    """`XLA_FLAGS` of a process with so many CPU devices."""
    return f"{CHEAP_XLA} --xla_force_host_platform_device_count={devices}"


def on_devices(count: int) -> dict[str, str]:
    """Environment of a process with so many CPU devices.

    Collectives of one device that run side by side each wait in a thread for the other devices: of as few threads as
    there are devices (or processors, `NPROC`) none may be left for the one that all wait for.
    """
    return {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": xla_flags(count), "NPROC": str(4 * count)}
