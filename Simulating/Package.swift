// swift-tools-version: 6.2
import PackageDescription

// The store and its simulator once more, optimized: some forty times as many histories in the same time. `Product` and
// `ProductTests` are links to ../Sources and ../Tests.

let strict: [SwiftSetting] = [
    .swiftLanguageMode(.v6),
    .enableUpcomingFeature("ExistentialAny"),
    .enableUpcomingFeature("MemberImportVisibility"),
    .enableUpcomingFeature("InternalImportsByDefault"),
    .unsafeFlags(["-enable-testing"]),
    // The planted bugs are in no release build of the product.
    .define("DEBUG"),
]

let package = Package(
    name: "simulating",
    targets: [
        .target(name: "CLinux", path: "Product/CLinux"),
        .target(name: "BlockIO", dependencies: ["CLinux"], path: "Product/BlockIO", swiftSettings: strict),
        .target(
            name: "BlockStore", dependencies: ["BlockIO", "CLinux"], path: "Product/BlockStore", swiftSettings: strict),
        .target(
            name: "Simulation", dependencies: ["BlockIO"], path: "ProductTests/Simulation", swiftSettings: strict),
        .testTarget(
            name: "BlockStoreTests", dependencies: ["BlockStore", "BlockIO", "Simulation"],
            path: "ProductTests/BlockStoreTests", swiftSettings: strict),
    ]
)
