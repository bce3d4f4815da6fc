/// How much a snapshot promises. The order is the strength: `crash < fileSystem < application`.
public enum Consistency: String, Codable, Sendable, CaseIterable, Comparable {
    /// What a power cut would have left: every write acknowledged before the cut and none after.
    case crash
    /// The file systems on the volumes were frozen across the cut.
    case fileSystem
    /// The applications on the volumes were quiesced across the cut, with evidence.
    case application

    private var strength: Int {
        switch self {
        case .crash: 0
        case .fileSystem: 1
        case .application: 2
        }
    }

    public static func < (left: Consistency, right: Consistency) -> Bool { left.strength < right.strength }
}

/// What happens when the requested consistency cannot be reached.
public enum ConsistencyPolicy: String, Codable, Sendable {
    /// The snapshot fails and leaves nothing behind. The default.
    case require
    /// The snapshot is kept with what was achieved, and its evidence says why it is less.
    case allowLower
}
