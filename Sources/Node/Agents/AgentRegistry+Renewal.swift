import API
import Catalog
import Foundation
import Logging
import SwiftASN1
import X509

// The renewal of agents' certificates. The agent takes no part in when: the node looks at it often, and knows.

extension AgentRegistry {
    /// `STILLPOINT_TEST_AGENT_CERTIFICATE_SECONDS` makes them short-lived, so that a test sees them renewed.
    static var usualCertificateSeconds: Double {
        ProcessInfo.processInfo.environment["STILLPOINT_TEST_AGENT_CERTIFICATE_SECONDS"].flatMap(Double.init)
            ?? CertificateAuthority.agentSeconds
    }

    /// Renews the certificate that an agent shows when a third of its life is left. Whatever fails, the one it has
    /// stays in use, and the next look tries again.
    func renewIfDue(_ record: AgentRecord, _ status: AgentStatus) async {
        guard let shown = status.identity else { return }
        do {
            if shown.certificateFingerprint != record.certificateFingerprint {
                // A renewal of which the node did not hear the end.
                try await note(shown, of: record.name)
            }
            guard shown.certificateExpiresAt.timeIntervalSinceNow < certificateSeconds / 3 else { return }
            try await renew(record)
        } catch {
            logger.warning(
                "an agent's certificate was not renewed",
                metadata: [
                    "agent": "\(record.name)", "ends": "\(shown.certificateExpiresAt)", "reason": "\(error)",
                ])
        }
    }

    private func renew(_ record: AgentRecord) async throws {
        let old = try client(record)
        let request = try await old.requestIdentity()
        let certificate = try identity.authority.issueAgent(
            name: record.name, requestPEM: request.certificateRequest, lifetimeSeconds: certificateSeconds)
        let wanted = IdentityState(
            certificateFingerprint: try certificate.fingerprint, certificateExpiresAt: certificate.notValidAfter)
        let installed = try await old.installIdentity(
            IdentityInstall(certificate: try certificate.serializeAsPEM().pemString))
        guard installed.certificateFingerprint == wanted.certificateFingerprint else {
            throw APIFailure.invalid("the agent shows another certificate than the one it was given")
        }
        try await note(wanted, of: record.name)
        // A new connection, on which the new certificate is shown and verified.
        guard let renewed = try await catalog.agent(named: record.name) else { return }
        _ = try await client(renewed).confirmIdentity(wanted)
        logger.notice(
            "agent's certificate renewed",
            metadata: ["agent": "\(record.name)", "until": "\(wanted.certificateExpiresAt)"])
    }

    private func note(_ shown: IdentityState, of name: String) async throws {
        try await catalog.noteAgentCertificate(
            name: name, fingerprint: shown.certificateFingerprint, expiresAt: shown.certificateExpiresAt)
    }
}
