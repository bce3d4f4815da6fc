import API
import Foundation

/// What the node keeps with a snapshot in the pool, as JSON, so that it travels with the snapshot wherever that goes.
struct SnapshotAttributes: Codable, Sendable, Equatable {
    enum State: String, Codable, Sendable {
        /// Its saga has not ended: nobody is shown it.
        case pending
        case complete
    }

    /// Of this format; 1.
    var version: Int
    /// Empty for a snapshot that no saga made.
    var sagaID: String
    var state: State
    var requested: Consistency
    var achieved: Consistency
    /// The longest time that any member was quiet, in seconds.
    var quietSeconds: Double
    var evidence: EvidenceInfo?

    init(
        version: Int = 1, sagaID: String, state: State, requested: Consistency, achieved: Consistency,
        quietSeconds: Double, evidence: EvidenceInfo?
    ) {
        self.version = version
        self.sagaID = sagaID
        self.state = state
        self.requested = requested
        self.achieved = achieved
        self.quietSeconds = quietSeconds
        self.evidence = evidence
    }

    /// Nil for bytes that are no attributes of a version that this release knows.
    init?(bytes: [UInt8]) {
        guard let decoded = try? APIJSON.decoder().decode(SnapshotAttributes.self, from: Data(bytes)),
            decoded.version == 1
        else { return nil }
        self = decoded
    }

    /// Sorted keys, so that equal attributes are equal bytes.
    func bytes() throws -> [UInt8] { Array(try APIJSON.encoder().encode(self)) }
}
