// Sets the schedule of the launches that follow; Python calls it through ctypes.
#include "emulator.hpp"

extern "C" __attribute__((visibility("default"))) void emulator_set_schedule(unsigned seed,
                                                                             unsigned workers) {
  emulator::schedule = {seed, workers};
}
