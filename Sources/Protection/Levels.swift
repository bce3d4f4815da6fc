/// How much a snapshot promises; `crash < fileSystem < application`.
public enum ConsistencyLevel: String, Codable, Sendable, CaseIterable, Comparable {
    case crash
    case fileSystem
    case application

    private var strength: Int {
        switch self {
        case .crash: 0
        case .fileSystem: 1
        case .application: 2
        }
    }

    public static func < (left: ConsistencyLevel, right: ConsistencyLevel) -> Bool { left.strength < right.strength }

    /// For people, before "-consistent".
    var text: String { self == .fileSystem ? "file-system" : rawValue }

    /// What has to be brought to rest for this level. Applications come to rest on running file systems, and a machine
    /// that is paused can do neither: hence the order.
    public var layers: [QuiesceLayer] {
        switch self {
        case .crash: []
        case .fileSystem: [.fileSystem, .hostFileSystem]
        case .application: QuiesceLayer.allCases
        }
    }
}

/// What happens when the requested level cannot be reached.
public enum LevelPolicy: String, Codable, Sendable {
    case require
    case allowLower
}

/// In the order in which they are quiesced; released in reverse.
public enum QuiesceLayer: String, Codable, Sendable, CaseIterable, Comparable {
    case application
    case fileSystem
    case machine
    /// A file system of a host with the disks of machines on it: they cannot come to rest on a frozen one.
    case hostFileSystem

    public var order: Int {
        switch self {
        case .application: 0
        case .fileSystem: 1
        case .machine: 2
        case .hostFileSystem: 3
        }
    }

    public static func < (left: QuiesceLayer, right: QuiesceLayer) -> Bool { left.order < right.order }
}
