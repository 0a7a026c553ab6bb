#include "kernels/reference/reference_backend.h"

#include <gtest/gtest.h>

#include "kernels/testing/backend_suite.h"

namespace santa::testing {

INSTANTIATE_TEST_SUITE_P(Reference, BackendSuite,
                         ::testing::Values(BackendUnderTest{.name = "reference",
                                                            .make = reference::MakeReferenceBackend}),
                         NameOf);

}  // namespace santa::testing
