import Synchronization

/// `HOST:PORT` of what the node listens on, known once it does.
final class ListeningAddresses: Sendable {
    private let state = Mutex((api: "", iscsi: ""))

    var api: String {
        get { state.withLock { $0.api } }
        set { state.withLock { $0.api = newValue } }
    }

    var iscsi: String {
        get { state.withLock { $0.iscsi } }
        set { state.withLock { $0.iscsi = newValue } }
    }
}
