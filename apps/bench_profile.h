// The pages of `pronghorn bench` on where time goes.
#pragma once

#include <nlohmann/json.hpp>
#include <span>

#include "backend/machine.h"
#include "lab/profile.h"

namespace pronghorn::app {

// One table for each.
void print_profiles(std::span<const lab::Profile> profiles, const MachineCeilings& machine);
nlohmann::json profiles_json(std::span<const lab::Profile> profiles,
                             const MachineCeilings& machine);

}  // namespace pronghorn::app
