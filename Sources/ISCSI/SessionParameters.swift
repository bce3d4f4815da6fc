/// The operational parameters of a session (RFC 7143 13), as they stand after negotiation.
struct SessionParameters: Equatable {
    var headerDigest = false
    var dataDigest = false
    var initialR2T = true
    var immediateData = true
    /// What the initiator accepts in one data segment, in bytes.
    var sendSegmentBytes = 8192
    var maxBurstBytes = 262_144
    var firstBurstBytes = 65_536
    var maxOutstandingR2T = 1
    var defaultTime2Wait = 2
    var defaultTime2Retain = 20

    /// What the target says to one key of the initiator's.
    enum Answer: Equatable {
        case value(String)
        /// A declarative key: heard, not answered.
        case silent
        case reject
        case notUnderstood
        /// The value is impossible: the login fails.
        case invalid
    }

    /// Negotiates one operational key. Keys of other kinds (names, authentication) are not for here.
    mutating func negotiate(_ key: String, _ value: String, limits: TargetLimits, isDiscovery: Bool) -> Answer {
        switch key {
        case "HeaderDigest": return chooseDigest(value, \.headerDigest)
        case "DataDigest": return chooseDigest(value, \.dataDigest)
        case "MaxConnections": return number(value, 1...65_535) { _ in 1 }
        case "InitialR2T": return boolean(value, \.initialR2T)
        case "ImmediateData": return boolean(value, \.immediateData)
        case "MaxRecvDataSegmentLength":
            guard let bytes = TextValue.number(value), (512...16_777_215).contains(bytes) else { return .invalid }
            sendSegmentBytes = Int(bytes)
            return .silent
        case "MaxBurstLength":
            return number(value, 512...16_777_215, \.maxBurstBytes) { min($0, limits.maxBurstBytes) }
        case "FirstBurstLength":
            return number(value, 512...16_777_215, \.firstBurstBytes) { min($0, limits.firstBurstBytes) }
        case "MaxOutstandingR2T":
            return number(value, 1...65_535, \.maxOutstandingR2T) { min($0, limits.outstandingR2T) }
        case "DefaultTime2Wait": return number(value, 0...3600, \.defaultTime2Wait) { $0 }
        // Nothing is retained at ErrorRecoveryLevel 0.
        case "DefaultTime2Retain": return number(value, 0...3600, \.defaultTime2Retain) { _ in 0 }
        case "DataPDUInOrder", "DataSequenceInOrder":
            return TextValue.boolean(value) == nil ? .invalid : .value("Yes")
        case "ErrorRecoveryLevel": return number(value, 0...2) { _ in 0 }
        case "IFMarker", "OFMarker": return .value("No")
        case "IFMarkInt", "OFMarkInt": return .reject
        case "TaskReporting":
            return TextValue.list(value).contains("RFC3720") ? .value("RFC3720") : .reject
        case "iSCSIProtocolLevel": return number(value, 0...31) { min($0, 1) }
        default: return .notUnderstood
        }
    }

    private mutating func chooseDigest(_ value: String, _ field: WritableKeyPath<Self, Bool>) -> Answer {
        for choice in TextValue.list(value) where choice == "None" || choice == "CRC32C" {
            self[keyPath: field] = choice == "CRC32C"
            return .value(choice)
        }
        return .reject
    }

    private mutating func boolean(_ value: String, _ field: WritableKeyPath<Self, Bool>) -> Answer {
        guard let offered = TextValue.boolean(value) else { return .invalid }
        // InitialR2T is the OR of both sides' wishes, ImmediateData the AND; the target wants No and Yes.
        self[keyPath: field] = offered
        return .value(value)
    }

    private mutating func number(
        _ value: String, _ range: ClosedRange<UInt32>, _ field: WritableKeyPath<Self, Int>? = nil,
        _ result: (Int) -> Int
    ) -> Answer {
        guard let offered = TextValue.number(value), range.contains(offered) else { return .invalid }
        let chosen = result(Int(offered))
        if let field { self[keyPath: field] = chosen }
        return .value(String(chosen))
    }
}
