// TLS certificates made on the spot, so that no key lies in the repository and none runs out.
#ifndef SANTA_TESTS_CLIENT_LIBRARY_CERTIFICATES_H_
#define SANTA_TESTS_CLIENT_LIBRARY_CERTIFICATES_H_

#include <string>

namespace santa {

// Both PEM. Signed by itself, so the certificate is its own root.
struct Certificate {
  std::string certificate;
  std::string key;
};

// An elliptic-curve key on P-256 and a certificate for `alternative_names` ("IP:127.0.0.1", "DNS:a.test", or several
// with commas), valid for a day around now. Throws std::runtime_error when OpenSSL fails.
Certificate MakeCertificate(const std::string& alternative_names);

}  // namespace santa

#endif  // SANTA_TESTS_CLIENT_LIBRARY_CERTIFICATES_H_
