import ISCSI

/// The iSCSI target as a revert sees it.
struct TargetAdapter: RevertGuarding {
    let registry: TargetRegistry

    func sessions(naa: String) -> [SagaSession] {
        registry.sessions(naa: naa).map { SagaSession(initiator: $0.initiator, address: $0.address) }
    }

    func blockLogins(naa: String) { registry.blockLogins(naa: naa) }

    func unblockLogins(naa: String) { registry.unblockLogins(naa: naa) }

    func deviceReverted(naa: String) { registry.deviceReverted(naa: naa) }
}
