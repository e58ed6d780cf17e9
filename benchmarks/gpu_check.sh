#!/usr/bin/env bash
# Everything that needs a GPU, offline, within 9 minutes:
#
#     benchmarks/gpu_check.sh [FOLDER [STAGE...]]      logs and gpu_check.json go to FOLDER,
#                                                      by default build/gpu_check
#
# The stages are build (the extension, for this GPU only), tests (those marked `gpu`), memcheck and
# racecheck (compute-sanitizer on the small shapes) and bench_<name> for each of benchmarks/. They
# share the 9 minutes, and a benchmark that is cut short keeps the shapes that it has done. To have
# all of them whole, run three commands with one FOLDER, whose table adds up:
#
#     benchmarks/gpu_check.sh FOLDER build tests memcheck racecheck
#     benchmarks/gpu_check.sh FOLDER bench_{axial_attention,linear_cross_entropy}
#     benchmarks/gpu_check.sh FOLDER bench_{dropout_add_layer_norm,bias_gelu,embed_tokens,mask_tokens,train}
#
# The last lines are a table. Exits with 1 if a stage failed.
set -uo pipefail
cd "$(dirname "$0")/.."
out=$(realpath -m "${1:-build/gpu_check}")
mkdir -p "$out"
stages=("${@:2}")
if ((${#stages[@]} == 0)); then
  stages=(build tests memcheck racecheck)
  for file in benchmarks/bench_*.py; do stages+=("$(basename "$file" .py)"); done
fi
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
export PATH="$PATH:${CUDA_HOME:-/usr/local/cuda}/bin"
arch=$(python3 -c 'import torch
major, minor = torch.cuda.get_device_capability()
print(f"{major}.{minor}" + "a" * (major == 9))') || { echo "no CUDA device that torch can use"; exit 1; }

declare -A weights=([build]=6 [tests]=4 [bench_axial_attention]=4 [bench_train]=5) # others: 2
deadline=$((SECONDS + 480)) # leaves time for a stage to end and for the summary

# run NAME SECONDS COMMAND...: at most so long; keeps its log.
run() {
  local name=$1 limit=$2 start=$SECONDS status
  shift 2
  timeout --kill-after=20 "$limit" "$@" > "$out/$name.log" 2>&1
  status=$?
  printf '%s\t%s\t%s\n' "$name" "$status" $((SECONDS - start)) >> "$out/stages.tsv"
  echo "$name: exit status $status after $((SECONDS - start)) s, $(tail -n 1 "$out/$name.log")"
}

# Only the files with tests for a GPU: others need packages that kernels do not.
mapfile -t files < <(grep -lwE 'impl|gpu' tests/test_*.py)
tests=(python3 -m pytest -q -p no:cacheprovider "${files[@]}")
parallel=() # Triton compiles on one core for most of a test
if python3 -c 'import xdist' 2> /dev/null; then parallel=(-n "$(nproc)"); fi
# Our kernels alone: those of cuBLAS and torch take most of the time and have reports of their own.
# Failed API calls are left to the tests, as libraries probe the driver with some that may fail.
sanitizer=(compute-sanitizer --error-exitcode 9 --report-api-errors no
  --kernel-name 'regex=vimpac|axial_attention|linear_cross_entropy|dropout_add|bias_gelu|embed_tokens|mask_tokens')

total=0
for name in "${stages[@]}"; do total=$((total + ${weights[$name]:-2})); done
for name in "${stages[@]}"; do
  weight=${weights[$name]:-2}
  limit=$(((deadline - SECONDS) * weight / total)) # what is left, by weight
  total=$((total - weight))
  if ((limit < 5)); then limit=5; fi
  case $name in
    build) run "$name" "$limit" env TORCH_CUDA_ARCH_LIST="$arch" python3 setup.py build_ext --inplace ;;
    tests) run "$name" "$limit" env OMP_NUM_THREADS=1 "${tests[@]}" "${parallel[@]}" -m gpu ;;
    memcheck | racecheck)
      run "$name" "$limit" env PYTORCH_NO_CUDA_MEMORY_CACHING=1 \
        "${sanitizer[@]}" --tool "$name" "${tests[@]}" -m "gpu and sanitize"
      ;;
    *) run "$name" "$limit" python3 -m pytest "benchmarks/$name.py" --benchmark-only -q -p no:cacheprovider ;;
  esac
done

timeout 60 python3 benchmarks/gpu_summary.py "$out"
