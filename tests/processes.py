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
