/// SPC-4 5.13: who is registered, and who holds what. (PERSISTENT RESERVE OUT is in its own file.)
struct PersistentReservations {
    func conflicts(with nexus: LogicalUnitNexus, cdb: CommandBlock, access: CommandTraits.Access) -> Bool { false }
    func allowsReserve6(_ nexus: LogicalUnitNexus) -> Bool { true }
}

extension LogicalUnit {
    func persistentReserveIn(_ cdb: CommandBlock) throws(SenseData) -> CommandDisposition {
        throw .illegal(.invalidOperationCode)
    }
    func beginPersistentReserveOut(_ cdb: CommandBlock) throws(SenseData) -> CommandDisposition {
        throw .illegal(.invalidOperationCode)
    }
    func persistentReserveOut(_ cdb: CommandBlock, list: [UInt8], nexus: LogicalUnitNexus) -> CommandDisposition {
        .end(.good)
    }
}
